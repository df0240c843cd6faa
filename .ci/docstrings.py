"""Checks the docstrings of the public names by numpydoc's rules: ``python .ci/docstrings.py``.

Public are the names of ``__all__`` of the package and of the rooms that users call, with the public
methods of their classes. Prints one line a fault, and exits 1 if there is any.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import FunctionType

from numpydoc.validate import validate

ROOMS = (
    "numbacalib",
    "numbacalib.methods",
    "numbacalib.models",
    "numbacalib.quantizer",
    "numbacalib.statistics",
)
FORM = {"GL03", "GL06", "GL07", "GL08", "PR02", "PR03", "PR05", "PR10", "RT05", "SS06"}
"""A docstring at all, with a summary in one line, known sections in their order without double blank
lines, and parameters, where they are described, that are those of the signature, in its order."""
OF_FUNCTIONS = FORM | {"EX01", "PR01", "RT01"}
"""Also an example, every parameter, and what is returned. Classes describe fields where they stand."""
OPEN = {
    "EX01": [
        "numbacalib.awq_channel_scores",
        "numbacalib.fisher_information",
        "numbacalib.gptq_hessian_update",
        "numbacalib.gptq_inverse_hessian",
        "numbacalib.gptq_quantize_column",
        "numbacalib.methods.awq_clip",
        "numbacalib.methods.awq_scales",
        "numbacalib.methods.clipped_share",
        "numbacalib.methods.codebook",
        "numbacalib.methods.gptq",
        "numbacalib.methods.gptq_batch",
        "numbacalib.methods.output_loss",
        "numbacalib.methods.propagated_target",
        "numbacalib.methods.proxy_loss",
        "numbacalib.methods.quantize_layer",
        "numbacalib.methods.refit_scales",
        "numbacalib.methods.rtn",
        "numbacalib.methods.shrinkage_for",
        "numbacalib.methods.solve",
        "numbacalib.models.open_checkpoint",
        "numbacalib.models.open_place",
        "numbacalib.quantizer.collect",
        "numbacalib.quantizer.evaluate",
        "numbacalib.quantizer.quantize",
        "numbacalib.quantizer.read_importance",
        "numbacalib.statistics.load_fisher",
        "numbacalib.statistics.load_statistics",
        "numbacalib.statistics.load_weights",
        "numbacalib.statistics.stored_channels",
        "numbacalib.statistics.save_fisher",
        "numbacalib.statistics.save_statistics",
    ],
    "PR01": [
        "numbacalib.methods.clipped_share",
        "numbacalib.methods.solve",
        "numbacalib.statistics.load_fisher",
        "numbacalib.statistics.load_statistics",
        "numbacalib.statistics.load_weights",
        "numbacalib.statistics.stored_channels",
        "numbacalib.statistics.save_fisher",
        "numbacalib.statistics.save_statistics",
    ],
    "PR03": [
        "numbacalib.methods.gptq_batch",
    ],
    "RT01": [
        "numbacalib.methods.awq_clip",
        "numbacalib.methods.awq_scales",
        "numbacalib.methods.clipped_share",
        "numbacalib.methods.codebook",
        "numbacalib.methods.proxy_loss",
        "numbacalib.methods.quantize_layer",
        "numbacalib.methods.shrinkage_for",
        "numbacalib.models.open_place",
        "numbacalib.quantizer.evaluate",
        "numbacalib.quantizer.read_importance",
        "numbacalib.statistics.load_fisher",
        "numbacalib.statistics.load_statistics",
        "numbacalib.statistics.load_weights",
        "numbacalib.statistics.stored_channels",
    ],
}
"""Names for which a rule does not hold yet. A name that is here for nothing is a fault, too."""


def public_names() -> Iterator[tuple[str, str, set[str]]]:
    """Give each public object's name, where it is defined, and the codes of what must hold for it."""
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            if not isinstance(thing, (type, FunctionType)):
                continue  # a constant, described where it stands
            where = f"{thing.__module__}.{thing.__qualname__}"
            yield f"{room}.{name}", where, FORM if isinstance(thing, type) else OF_FUNCTIONS
            if isinstance(thing, type):
                for member, value in vars(thing).items():
                    if not member.startswith("_") and isinstance(value, FunctionType):
                        yield f"{room}.{name}.{member}", f"{where}.{member}", FORM


def faults() -> Iterator[str]:
    """Give one line for each rule that does not hold, or holds although `OPEN` says that it does not."""
    unused = {(code, name) for code, names in OPEN.items() for name in names}
    for name, where, codes in public_names():
        for code, message in validate(where)["errors"]:
            if (code, name) in unused:
                unused.discard((code, name))
            elif code in codes:
                yield f"{name}: {code} {message}"
    yield from (f"{name}: {code} holds now, take it out of OPEN" for code, name in sorted(unused))


if __name__ == "__main__":
    found = list(faults())
    print("\n".join(found))
    sys.exit(1 if found else 0)
