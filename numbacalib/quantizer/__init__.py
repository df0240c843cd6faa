"""A whole model: read, calibrate, quantize, write, prove, evaluate."""

from numbacalib.quantizer.calibration import collect
from numbacalib.quantizer.evaluation import Evaluation, evaluate
from numbacalib.quantizer.importance import read_importance
from numbacalib.quantizer.pipeline import quantize
from numbacalib.quantizer.proof import Proof, ProofError, verify
from numbacalib.quantizer.report import RunReport
from numbacalib.quantizer.settings import Settings

__all__ = [
    "Evaluation",
    "Proof",
    "ProofError",
    "RunReport",
    "Settings",
    "collect",
    "evaluate",
    "quantize",
    "read_importance",
    "verify",
]
