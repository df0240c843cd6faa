"""Rotary embeddings and kinds of layers that variants of architectures have."""

from __future__ import annotations

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i / 8 for i in range(6)],
    "long_factor": [2.0 + i for i in range(6)],
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
BY_KIND = {
    "full_attention": {"rope_theta": 5e4, **YARN},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
FULL, SLIDING = "full_attention", "sliding_attention"
