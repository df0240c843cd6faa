"""What the operations stand on: dispatch, checks, compilation options, 16-bit floats, BLAS."""
