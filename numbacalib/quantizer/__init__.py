"""A whole model: read, calibrate, quantize, write, evaluate."""

from numbacalib.quantizer.calibration import collect
from numbacalib.quantizer.evaluation import Evaluation, evaluate
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.onnx_model import quantize_onnx
from numbacalib.quantizer.pipeline import quantize
from numbacalib.quantizer.settings import Settings

__all__ = [
    "Evaluation",
    "Settings",
    "collect",
    "evaluate",
    "quantize",
    "quantize_onnx",
    "read_importance",
]
