"""Fisher information of a model's linear layers, from gradients of the same model in torch."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from small_models import Subject

from numbacalib.models import Checkpoint
from numbacalib.statistics import GradientStatistics

AGREEMENT = 1e-4
"""Allowed relative difference between torch's loss and ours, which are summed in different orders."""


@cache
def fisher_of_linears(subject: Subject) -> dict[str, NDArray[np.float32]]:
    """Mean square of the loss's gradients over the calibration sequences, by layer name.

    A sample is a sequence, as in SqueezeLLM (Kim et al., 2023): the gradient of its mean loss.

    Raises
    ------
    AssertionError
        If torch's model is not the quantized one's original.
    """
    model = torch_model(subject.checkpoint)
    linears = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers.")
    }
    found = {name: GradientStatistics(tuple(weight.shape)) for name, weight in linears.items()}
    for index, tokens in enumerate(subject.calibration_tokens):
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        loss = model(ids, labels=ids).loss
        if index == 0:
            expected = subject.decoder.loss(tokens)
            if abs(loss.item() - expected) > AGREEMENT * expected:
                raise AssertionError(f"{subject.name}: torch's loss is {loss}, not {expected}")
        loss.backward()
        for name, weight in linears.items():
            found[name].update(weight.grad.numpy())
        model.zero_grad()
    return {name: statistics.fisher for name, statistics in found.items()}


def torch_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint's model in transformers, float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = checkpoint.hf_config()
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {
        name: torch.from_numpy(checkpoint.tensor(name).astype(np.float32))
        for name in checkpoint.names()
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise AssertionError(f"tensors that differ: {missing}, {unexpected}")
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("model.layers.") and parameter.ndim == 2)
    return model
