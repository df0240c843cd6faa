"""A whole model: read, calibrate, quantize, write, prove, evaluate."""

from numbacalib.quantizer.collection import collect
from numbacalib.quantizer.convert import convert
from numbacalib.quantizer.evaluation import Evaluation, evaluate
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.onnx_model import quantize_onnx
from numbacalib.quantizer.pipeline import quantize
from numbacalib.quantizer.plan import Plan
from numbacalib.quantizer.proof import Proof, ProofError, verify
from numbacalib.quantizer.report import RunReport
from numbacalib.quantizer.settings import Settings

__all__ = [
    "Evaluation",
    "Plan",
    "Proof",
    "ProofError",
    "RunReport",
    "Settings",
    "collect",
    "convert",
    "evaluate",
    "quantize",
    "quantize_onnx",
    "read_importance",
    "verify",
]
