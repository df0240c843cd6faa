"""Methods: a layer's weight and statistics in, a `QuantizedWeight` out."""

from numbacalib.methods.awq import ChannelScales, awq_clip, awq_scales
from numbacalib.methods.codebook import CodebookWeight, codebook
from numbacalib.methods.descent import descend_codes
from numbacalib.methods.equal_layers import quantize_each
from numbacalib.methods.experts import ExpertInputs, quantize_experts
from numbacalib.methods.fp4 import Fp4Scales, fp4_scales
from numbacalib.methods.gptq import gptq, gptq_batch, gptq_shared
from numbacalib.methods.gptq_report import GptqReport
from numbacalib.methods.layer import LayerReport, LayerSettings
from numbacalib.methods.layers import quantize_layer, quantize_layers, solve
from numbacalib.methods.loss import clipped_share, proxy_loss
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.refit import refit_scales
from numbacalib.methods.rtn import rtn
from numbacalib.methods.shrinkage import shrinkage_for
from numbacalib.methods.target import output_loss, propagated_target
from numbacalib.spec.range_search import RangeSearch

__all__ = [
    "ChannelScales",
    "CodebookWeight",
    "ExpertInputs",
    "Fp4Scales",
    "GptqReport",
    "LayerReport",
    "LayerSettings",
    "QuantizedWeight",
    "RangeSearch",
    "awq_clip",
    "awq_scales",
    "clipped_share",
    "codebook",
    "descend_codes",
    "fp4_scales",
    "gptq",
    "gptq_batch",
    "gptq_shared",
    "output_loss",
    "propagated_target",
    "proxy_loss",
    "quantize_each",
    "quantize_experts",
    "quantize_layer",
    "quantize_layers",
    "refit_scales",
    "rtn",
    "shrinkage_for",
    "solve",
]
