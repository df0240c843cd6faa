"""The compressed-tensors `pack-quantized` format, which transformers and vLLM load.

A quantized linear layer has, in the place of ``weight`` [M, K], with G groups a row:

- ``weight_packed`` int32 [M, ceil(K * bits / 32)], unsigned codes, packed along the row;
- ``weight_scale`` [M, G], in the dtype of the model;
- ``weight_shape`` int64 [2], M and K;
- ``weight_zero_point`` int32 [ceil(M * bits / 32), G], unsigned, packed along the column; on the
  asymmetric grid only. On the symmetric one the zero point is ``2 ** (bits - 1)``.

The layout is that of compressed-tensors 0.20 (https://github.com/vllm-project/compressed-tensors,
pull requests 715 and 732), which packs 3, 5, 6 and 7 bits without gaps. Releases before those left
gaps or refused; 2, 4 and 8 bits are the same in all. Groups are runs of channels: its maintainers
have removed ``weight_g_idx``, so that it is read here but not written. Release 0.20 fails on 4-bit
zero points of a layer with several groups and at most 8 rows (one word of them along the column), so
that such a layer is not written either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import pack_bits, unpack_bits, word_count
from numbacalib.formats.group_lengths import group_lengths
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.models.fields import Fields
from numbacalib.models.packed_schemes import FORMAT, METHOD, PackedSchemes, read_schemes

if TYPE_CHECKING:
    from numbacalib.models import Checkpoint


class PackedLayout:
    """How the linear layers of one model are stored.

    A symmetric model has a config group for each length of groups. Of an asymmetric one transformers
    5.24 with compressed-tensors 0.20 reads the first config group alone (``get_dense_scheme`` takes it
    for all layers), so that all its layers have groups of one length.

    Parameters
    ----------
    shapes : mapping of str to (int, int)
        M and K of each linear layer that is quantized, by the layer's name, such as
        ``"model.layers.0.mlp.down_proj"``.
    bits : int
        2 to 8.
    group_size : int or None
        Input channels that share a scale; None is one scale a row. Where it does not divide K,
        `group_lengths` says what is taken.
    symmetric : bool

    Attributes
    ----------
    group_sizes : dict of str to int or None
        Input channels that share a scale, of each layer.

    Raises
    ------
    ValueError
        If no length of groups fits, or the zero points of a layer cannot be read back.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        bits: int,
        group_size: int | None,
        symmetric: bool,
    ) -> None:
        self._bits, self._symmetric = bits, symmetric
        self._asked = group_size
        channels = {layer: shape[1] for layer, shape in shapes.items()}
        self.group_sizes = group_lengths(channels, group_size, uniform=not symmetric)
        for layer, (rows, length) in shapes.items():
            groups = length // (self.group_sizes[layer] or length)
            if bits == 4 and not symmetric and word_count(rows, bits) == 1 and groups > 1:
                raise ValueError(
                    f"{layer}: compressed-tensors 0.20 cannot read 4-bit zero points of {rows} rows "
                    f"in {groups} groups: use the symmetric grid, other bits, or one scale a row"
                )

    def quantization_config(self, ignore: Sequence[str] = ("lm_head",)) -> dict[str, Any]:
        """Return the ``quantization_config`` of the model's ``config.json``.

        `ignore` names the linear layers that are not quantized.
        """
        counts = Counter(self.group_sizes.values())
        most = max(counts, key=lambda size: counts[size], default=self._asked)
        # A layer's name goes before its class in any order; in this one nothing warns.
        groups = [
            self._config_group(
                [name for name, own in self.group_sizes.items() if own == size], size
            )
            for size in counts
            if size != most
        ]
        groups.append(self._config_group(["Linear"], most))
        config: dict[str, Any] = {
            "quant_method": METHOD,
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
            "ignore": list(ignore),
            "kv_cache_scheme": None,
        }
        if not self._symmetric:
            # Transformers decompresses on the first forward pass, or while loading if this is set.
            # The former fails on zero points: compressed-tensors 0.20 expects them unpacked there.
            config["dequantize"] = True
        return config

    def _config_group(self, targets: list[str], group_size: int | None) -> dict[str, Any]:
        weights = {
            "num_bits": self._bits,
            "type": "int",
            "symmetric": self._symmetric,
            "strategy": "channel" if group_size is None else "group",
            "group_size": group_size,
            "dynamic": False,
        }
        return {"targets": targets, "weights": weights, "format": FORMAT}


def pack(quantized: QuantizedWeight) -> dict[str, NDArray[Any]]:
    """Return a layer's tensors by their names in the layer, such as ``"weight_packed"``.

    Raises
    ------
    ValueError
        If the weight has a `g_idx`, which the format no longer holds.
    """
    if quantized.g_idx is not None:
        raise ValueError("g_idx: expected None, compressed-tensors has no groups out of order")
    tensors = {
        "weight_packed": pack_bits(quantized.codes, quantized.bits),
        "weight_scale": quantized.scales,
        "weight_shape": np.array(quantized.codes.shape, np.int64),
    }
    if not quantized.symmetric:
        packed = pack_bits(quantized.zeros.T, quantized.bits)
        tensors["weight_zero_point"] = np.ascontiguousarray(packed.T)
    return tensors


def packed_bytes(
    shape: tuple[int, int],
    group_size: int | None,
    *,
    bits: int,
    symmetric: bool,
    scale_dtype: np.dtype,
) -> int:
    """Bytes of the tensors that `pack` returns for a layer of `shape` M, K."""
    rows, channels = shape
    groups = channels // (group_size or channels)
    words = rows * word_count(channels, bits)
    if not symmetric:
        words += word_count(rows, bits) * groups
    return 4 * words + rows * groups * scale_dtype.itemsize + 16


def unpack(tensors: Mapping[str, NDArray[Any]], *, bits: int, symmetric: bool) -> QuantizedWeight:
    """Read back what `pack` returns; a ``weight_g_idx`` [K] is read too.

    Raises
    ------
    ValueError
        If a tensor is missing, or its shape or dtype does not fit the others.
    """
    rows, channels = _tensor(tensors, "weight_shape", np.integer, (2,)).tolist()
    scales = _tensor(tensors, "weight_scale", None, (rows, None))
    groups = scales.shape[1]
    if channels < 1 or groups < 1 or channels % groups:
        raise ValueError(
            f"weight_scale: expected a divisor of K = {channels} columns, got {groups}"
        )
    words = _tensor(tensors, "weight_packed", np.int32, (rows, word_count(channels, bits)))
    if symmetric:
        zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    else:
        shape = (word_count(rows, bits), groups)
        packed = _tensor(tensors, "weight_zero_point", np.int32, shape)
        zeros = np.ascontiguousarray(unpack_bits(packed.T, bits, rows).T)
    g_idx = None
    if "weight_g_idx" in tensors:
        g_idx = _tensor(tensors, "weight_g_idx", np.integer, (channels,)).astype(np.int64)
        if g_idx.min() < 0 or g_idx.max() >= groups:
            raise ValueError(
                f"weight_g_idx: expected 0 to {groups - 1}, got {g_idx.min()} to {g_idx.max()}"
            )
    return QuantizedWeight(
        unpack_bits(words, bits, channels),
        scales,
        zeros,
        bits,
        channels // groups,
        symmetric,
        g_idx,
    )


def is_compressed(hf_config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says that its weights are in this format.

    Raises
    ------
    ValueError
        If they are quantized in any other way, or their activations are.
    """
    return _read(hf_config) is not None


class PackedLayers(Mapping[str, QuantizedWeight]):
    """The quantized linear layers of a checkpoint in this format, by name, read when asked for.

    Names are those of layers, such as ``"model.layers.0.self_attn.q_proj"``.

    Raises
    ------
    ValueError
        On construction, before any weight is read: if the checkpoint is quantized in another way,
        or no config group matches a layer that is packed. On access: as `unpack`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        schemes = _read(checkpoint.hf_config())
        if schemes is None:
            raise ValueError(f"{checkpoint.path}: expected a quantization_config, found none")
        self._checkpoint = checkpoint
        self._names = set(checkpoint.names())
        self._layers = {}
        for name in checkpoint.names():
            layer = name.removesuffix(".weight_packed")
            if layer == name:
                continue
            if f"{layer}.weight" in self._names:
                raise ValueError(f"{checkpoint.path}: {name}: expected no {layer}.weight beside it")
            try:
                self._layers[layer] = schemes.of(layer)
            except ValueError as error:
                raise ValueError(f"{checkpoint.path}: {error}") from None

    def __getitem__(self, layer: str) -> QuantizedWeight:
        scheme = self._layers[layer]
        tensors = {
            kind: self._checkpoint.tensor(f"{layer}.{kind}")
            for kind in _TENSORS
            if f"{layer}.{kind}" in self._names
        }
        try:
            weight = unpack(tensors, bits=scheme.bits, symmetric=scheme.symmetric)
        except ValueError as error:
            raise ValueError(f"{self._checkpoint.path}: {layer}.{error}") from None
        expected = scheme.group_size or weight.codes.shape[1]
        if weight.group_size != expected:
            raise ValueError(
                f"{self._checkpoint.path}: {layer}.weight_scale: expected groups of {expected} as "
                f"quantization_config has it, got groups of {weight.group_size}"
            )
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def weight_reader(checkpoint: Checkpoint) -> Callable[[str], NDArray[np.float32]]:
    """Return a function from a tensor's name to its values, float32.

    The name ``<layer>.weight`` of a packed layer gives its dequantized weight [M, K]; any other
    name gives the tensor as stored.

    Raises
    ------
    ValueError
        As `PackedLayers`.
    """
    layers = PackedLayers(checkpoint)

    def read(name: str) -> NDArray[np.float32]:
        layer = name.removesuffix(".weight")
        if layer in layers:
            return layers[layer].dequantize()
        return checkpoint.tensor(name).astype(np.float32)

    return read


_TENSORS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")


def _read(hf_config: Mapping[str, Any]) -> PackedSchemes | None:
    config = Fields(hf_config).object("quantization_config", None)
    return None if config is None else read_schemes(config)


def _tensor(
    tensors: Mapping[str, NDArray[Any]],
    name: str,
    dtype: Any,
    shape: tuple[int | None, ...],
) -> NDArray[Any]:
    """One tensor, of a dtype that is a `dtype` and of the lengths in `shape`; None is any."""
    if name not in tensors:
        raise ValueError(f"{name}: expected a tensor of this name, found none")
    tensor = tensors[name]
    fits = len(tensor.shape) == len(shape) and all(
        expected in (None, length) for expected, length in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not (dtype is None or np.issubdtype(tensor.dtype, dtype)):
        kind = "" if dtype is None else f"{dtype.__name__} "
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(
            f"{name}: expected {kind}[{wanted}], got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor
