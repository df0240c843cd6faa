"""Methods: a layer's weight and statistics in, a `QuantizedWeight` out."""

from numbacalib.methods.gptq import GptqReport, gptq
from numbacalib.methods.loss import proxy_loss
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rtn import rtn

__all__ = ["GptqReport", "QuantizedWeight", "gptq", "proxy_loss", "rtn"]
