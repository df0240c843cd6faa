"""Settings that signatures repeat have one default."""

import dataclasses
import inspect

import pytest

from numbacalib.methods import (
    LayerSettings,
    awq_clip,
    awq_scales,
    gptq,
    gptq_batch,
    gptq_shared,
    rtn,
)


def settings_of(function):
    """Defaults of a method's settings by name; None stands for none."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


@pytest.mark.parametrize("method", [gptq_batch, gptq_shared, rtn, awq_clip, awq_scales])
def test_settings_of_the_methods_are_those_of_gptq(method):
    """Signatures repeat them, so that editors show them all: here they are held to one."""
    own, wanted = settings_of(method), settings_of(gptq)
    shared = own.keys() & wanted.keys()
    assert {name: own[name] for name in shared} == {name: wanted[name] for name in shared}
    if method in (gptq_batch, gptq_shared):
        assert wanted.keys() - own.keys() <= {"signed", "out", "wait"}
        assert own.keys() <= wanted.keys()


def test_settings_of_a_layer_are_those_of_gptq():
    wanted, own = settings_of(gptq), LayerSettings()
    shared = wanted.keys() & {field.name for field in dataclasses.fields(LayerSettings)}
    assert {name: getattr(own, name) for name in shared - {"bits"}} == {
        name: wanted[name] for name in shared - {"bits"}
    }
