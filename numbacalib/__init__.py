"""Calibration for weight quantization without torch: four operations on NumPy and CUDA arrays."""

from numbacalib.runtime.garbage import collector_paused

with collector_paused():
    import numbacalib.runtime.threads  # noqa: F401  (before NumPy and Numba)  # isort: skip

    from numbacalib.linalg import gptq_inverse_hessian
    from numbacalib.ops.awq_channel_scores import awq_channel_scores
    from numbacalib.ops.fisher_information import fisher_information
    from numbacalib.ops.gptq_hessian_update import gptq_hessian_update
    from numbacalib.ops.gptq_quantize_column import gptq_quantize_column

__all__ = [
    "awq_channel_scores",
    "fisher_information",
    "gptq_hessian_update",
    "gptq_inverse_hessian",
    "gptq_quantize_column",
]
