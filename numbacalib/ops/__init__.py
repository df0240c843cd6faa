"""The operations: one package each, with its contract, its CPU kernels and its GPU kernels."""
