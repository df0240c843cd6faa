"""The linear layers of a block by role: their names, rows and columns.

Roles are those of `numbacalib.models.description`; for experts see `layer_tensors.expert_parts`.
"""

from __future__ import annotations

from numbacalib.models.config import ModelConfig
from numbacalib.models.delta_net import DeltaNet
from numbacalib.models.latent import Latent

__all__ = ["columns_by_role", "names_by_role", "rows_by_role"]

MLP = ("gate", "up", "down")
LAYER_INPUT = ("layer_gate", "layer_output")


def names_by_role(config: ModelConfig, index: int) -> dict[str, str]:
    """Name the linear layer of each role in a block, without experts; roles may share a layer."""
    architecture = config.architecture
    linears = dict(architecture.linears)
    direct = linears.pop("direct_query", "")
    if config.latent is not None and not config.latent.query_size:
        del linears["query_latent"]
        linears["query"] = direct
    if config.shared_values and config.shared_values[index]:
        linears.pop("value", None)
    if config.key_source(index) is not None:
        for role in ("key", "value"):
            linears.pop(role, None)
    if not config.layer_input_size:
        for role in LAYER_INPUT:
            linears.pop(role, None)
    for described, there in (
        (architecture.delta, config.delta_of(index)),
        (architecture.convolution, config.convolution_of(index)),
        (architecture.state_space, config.state_space_of(index)),
    ):
        if described is not None and there is not None:
            own = {role: linears[role] for role in MLP if role in linears}
            linears = {**described.linears, **own}
    if not config.has(index, "attention"):
        linears = {role: name for role, name in linears.items() if role in MLP}
    if not config.has(index, "mlp"):
        return {role: name for role, name in linears.items() if role not in MLP}
    mixture, experts = config.mixture_of(index), architecture.experts
    if mixture is None or experts is None:
        return linears
    ends = {"gate": experts.gate, "up": experts.up, "down": experts.down}
    for role, end in ends.items():
        if not mixture.shared_size or not end:
            linears.pop(role, None)
        elif experts.shared:
            linears[role] = f"{experts.shared}.{end}"
    return linears


def rows_by_role(config: ModelConfig, index: int) -> dict[str, int]:
    """Return the rows of each role's layer, or part of a layer."""
    kv_heads, size = config.heads_of(index)
    queries, keys = config.queries_of(index) * size, kv_heads * size
    rows = {
        "query_key_value": queries + 2 * keys,
        "query_gate": 2 * queries,
        "attention_gate": queries,
        "query": queries,
        "key": keys,
        "value": keys,
        "layer_gate": config.layer_input_size,
        "layer_output": config.hidden_size,
        "thirds": 3 * config.hidden_size,
    }
    if (space := config.state_space_of(index)) is not None:
        rows["mixed"] = space.rows
    if (latent := config.latent) is not None:
        rows |= _latent_rows(config, latent)
    if (delta := config.delta_of(index)) is not None:
        rows = _delta_rows(delta)
    inner = _mlp_width(config, index)
    return rows | {"output": config.hidden_size} | _mlp_rows(inner, config.hidden_size)


def columns_by_role(config: ModelConfig, index: int) -> dict[str, int]:
    """Return the input length of each role's layer, where it is not `hidden_size`."""
    output = config.queries_of(index) * config.heads_of(index)[1]
    columns = {"down": _mlp_width(config, index), "output": output}
    columns["layer_output"] = config.layer_input_size
    if (latent := config.latent) is not None:
        columns["output"] = config.num_heads * latent.value_dim
        columns["key_value"] = latent.size
        columns["query"] = latent.query_size or config.hidden_size
    if (delta := config.delta_of(index)) is not None:
        columns["output"] = delta.values
    if (space := config.state_space_of(index)) is not None:
        columns["output"] = space.values
    if config.convolution_of(index) is not None:
        columns["output"] = config.hidden_size
    return columns


def _mlp_rows(inner: int, hidden: int) -> dict[str, int]:
    return {"gate": inner, "up": inner, "down": hidden}


def _mlp_width(config: ModelConfig, index: int) -> int:
    mixture = config.mixture_of(index)
    return config.mlp_size(index) if mixture is None else mixture.shared_size


def _latent_rows(config: ModelConfig, latent: Latent) -> dict[str, int]:
    still = config.head_dim - config.rotary_dim
    return {
        "query_latent": latent.query_size,
        "latent": latent.size + config.rotary_dim,
        "key_value": config.num_heads * (still + latent.value_dim),
    }


def _delta_rows(delta: DeltaNet) -> dict[str, int]:
    return {
        "query": delta.keys,
        "key": delta.keys,
        "value": delta.values,
        "open": delta.values,
        "query_key_value_open": 2 * (delta.keys + delta.values),
    }
