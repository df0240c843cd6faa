"""Infrastructure of the operations: dispatch, checks, compilation and its caches, 16-bit floats, BLAS."""
