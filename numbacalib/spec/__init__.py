"""The formulas: scalar functions written once and compiled for the CPU and for CUDA."""
