"""GPTQ's objective of a layer, trace(D H D^T), by this package and by its peers.

    python benchmarks/proxy.py [--model NAME] [--docs]

The same weights, Hessians and settings for all: asymmetric grids, groups of the model's size, float32
scales, damping 0.01, bits 4, 3 and 2. The original algorithm is the column loop of Frantar et al. (2022),
whose `act_order` forms groups in the visiting order; llm-compressor finds all scales beforehand. Losses are
float64, divided by RTN's of the same layer, in at most about ten blocks of a model. Writes
``results/proxy-<machine>.csv``, and exits 1 if ours is worse than a peer's by more than three standard
errors over the layers. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import describe_machine, write_csv
from numpy.typing import NDArray
from peers import LlmCompressor, original_gptq, tensor
from report import parser, report
from small_models import SUBJECTS, TOKENS, Subject
from tables import ProxyRow

from numbacalib.methods import gptq, rtn

PACKAGES = ("numba", "numpy", "scipy", "torch", "compressed-tensors")
BITS = (4, 3, 2)
Peer = Callable[..., torch.Tensor]


class Setting(NamedTuple):
    """Setting of GPTQ that a peer has too."""

    peer: str
    ours: dict[str, Any]
    act_order: bool
    """The peer's option of this name."""


ORIGINAL, LLM_COMPRESSOR = "original algorithm", "llm-compressor"
SETTINGS = {
    "columns as they come": Setting(ORIGINAL, {}, False),
    "order desc": Setting(ORIGINAL, {"act_order": "desc"}, True),
    "static groups": Setting(LLM_COMPRESSOR, {"static_groups": True}, False),
    "order desc, static groups": Setting(
        LLM_COMPRESSOR, {"act_order": "desc", "static_groups": True}, True
    ),
}


def layers(subject: Subject) -> Iterator[tuple[NDArray, NDArray]]:
    """Weight and Hessian of each linear layer of about ten blocks, evenly spaced."""
    blocks = subject.decoder.config.num_layers
    for index in range(0, blocks, max(1, blocks // 10)):
        block = subject.decoder.block(index)
        for stage, statistics in subject.calibration.preview(index, block):
            for kind in stage:
                yield block.linears[kind], statistics.hessian


def loss(weight: NDArray, values: NDArray, hessian: NDArray) -> float:
    """trace(D H D^T) in float64."""
    difference = weight.astype(np.float64) - values
    return float(np.vdot(difference @ hessian, difference))


def measure(subject: Subject, peers: dict[str, Peer]) -> Iterator[ProxyRow]:
    """Quantize every layer with every setting and number of bits, and compare."""
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for count, (weight, hessian) in enumerate(layers(subject), 1):
        size = subject.group_size(weight.shape[1])
        for bits in BITS:
            grid: dict[str, Any] = {"bits": bits, "group_size": size, "scale_dtype": np.float32}
            nearest = loss(weight, rtn(weight, **grid).dequantize(), hessian)
            for name, setting in SETTINGS.items():
                ours = gptq(weight, hessian, **grid, **setting.ours)
                theirs = peers[setting.peer](
                    tensor(weight), tensor(hessian), size, bits, setting.act_order
                )
                pair = [
                    loss(weight, values, hessian) / nearest
                    for values in (ours.dequantize(), theirs.numpy())
                ]
                found.setdefault((bits, name), []).append((pair[0], pair[1]))
        print(f"{subject.name}: layer {count}, {weight.shape[0]} x {weight.shape[1]}", flush=True)
    for (bits, name), pairs in found.items():
        ours, theirs = np.array(pairs).T
        logs = np.log(ours / theirs)
        yield ProxyRow(
            subject.name,
            bits,
            name,
            SETTINGS[name].peer,
            len(pairs),
            float(ours.mean()),
            float(theirs.mean()),
            float(np.exp(logs.mean())),
            float(logs.std(ddof=1) / np.sqrt(len(logs))),
            float(np.exp(logs.min())),
            float(np.exp(logs.max())),
        )


def main() -> int:
    """Measure, write the CSV and print the tables; return 1 if ours is worse somewhere."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", choices=SUBJECTS, help=f"only this one of {list(SUBJECTS)}")
    options = arguments.parse_args()
    machine = describe_machine(*PACKAGES, calibration=f"{TOKENS[0]} tokens of calibration")
    peers: dict[str, Peer] = {ORIGINAL: original_gptq, LLM_COMPRESSOR: LlmCompressor()}
    rows: list[ProxyRow] = []
    for model in [options.model] if options.model else SUBJECTS:
        rows += measure(SUBJECTS[model](), peers)
        file = write_csv("proxy", machine, rows)
    report(file, docs=options.docs)
    worse = [row for row in rows if row.worse]
    print(f"\n{len(worse)} of {len(rows)} settings worse than the peer beyond noise")
    print("\n".join(map(str, worse)))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
