"""What every public function says of arguments that it does not take: one line that names them."""

import dataclasses

import cases
import ml_dtypes
import numpy as np
import pytest

import numbacalib
from numbacalib.methods import (
    RangeSearch,
    awq_clip,
    awq_scales,
    clipped_share,
    codebook,
    gptq,
    gptq_batch,
    proxy_loss,
    rtn,
    shrinkage_for,
)
from numbacalib.runtime import backend
from numbacalib.statistics import GradientStatistics, InputStatistics

M, K, E = 3, 8, 2
GRID = {"bits": 4, "group_size": 4}


def weight(dtype=np.float32):
    return cases.random_matrix(1, (M, K), dtype)


def hessian(dtype=np.float32):
    return cases.random_hessian(2, K).astype(dtype)


def inputs(dtype=np.float32):
    return cases.random_matrix(3, (5, K), dtype)


def stacked(make):
    return lambda dtype=np.float32: np.stack([make(dtype)] * E)


def row(dtype=np.float32):
    return np.abs(cases.random_matrix(4, (1, K), dtype))[0]


def updated(statistics, array):
    statistics.update(array)
    return statistics


def quantized():
    return rtn(weight(), **GRID)


@dataclasses.dataclass(frozen=True)
class Function:
    """A public function of arrays: how to call it with all of them, and how each is made."""

    call: object
    arrays: dict
    optional: tuple = ()


FUNCTIONS = {
    "awq_channel_scores": Function(
        lambda activations, weights: numbacalib.awq_channel_scores(activations, weights),
        {"activations": inputs, "weights": weight},
    ),
    "fisher_information": Function(numbacalib.fisher_information, {"gradients": inputs}),
    "gptq_hessian_update": Function(
        numbacalib.gptq_hessian_update, {"hessian": hessian, "x_block": inputs}
    ),
    "gptq_inverse_hessian": Function(numbacalib.gptq_inverse_hessian, {"hessian": hessian}),
    "gptq_quantize_column": Function(
        lambda weight, h_inv: numbacalib.gptq_quantize_column(weight, h_inv, 4, 4, False),
        {"weight": weight, "h_inv": hessian},
    ),
    "rtn": Function(
        lambda weight, importance: rtn(weight, **GRID, search=RangeSearch(), importance=importance),
        {"weight": weight, "importance": row},
        ("importance",),
    ),
    "gptq": Function(
        lambda weight, hessian, importance: gptq(
            weight, hessian, **GRID, search=RangeSearch(), importance=importance
        ),
        {"weight": weight, "hessian": hessian, "importance": row},
        ("importance",),
    ),
    "gptq_batch": Function(
        lambda weights, hessians: gptq_batch(weights, hessians, **GRID),
        {"weights": stacked(weight), "hessians": stacked(hessian)},
    ),
    "awq_scales": Function(
        lambda weight, hessian, magnitude: awq_scales(
            [weight], hessian, magnitude, **GRID, points=2
        ),
        {"weight": weight, "hessian": hessian, "magnitude": row},
    ),
    "awq_clip": Function(
        lambda weight, hessian: awq_clip(weight, hessian, **GRID, points=2),
        {"weight": weight, "hessian": hessian},
    ),
    "codebook": Function(
        lambda weight, importance: codebook(weight, bits=2, importance=importance),
        {"weight": weight, "importance": row},
        ("importance",),
    ),
    "proxy_loss": Function(
        lambda weight, hessian, channel_scales: proxy_loss(
            weight, quantized(), hessian, channel_scales
        ),
        {"weight": weight, "hessian": hessian, "channel_scales": row},
        ("channel_scales",),
    ),
    "clipped_share": Function(
        lambda weight: clipped_share(weight, quantized()), {"weight": weight}
    ),
    "shrinkage_for": Function(lambda hessian: shrinkage_for(hessian, 9), {"hessian": hessian}),
    "InputStatistics": Function(
        lambda inputs: updated(InputStatistics(K), inputs), {"inputs": inputs}
    ),
    "GradientStatistics": Function(
        lambda gradients: updated(GradientStatistics((K,)), gradients), {"gradients": inputs}
    ),
}
ARGUMENTS = [(name, argument) for name in FUNCTIONS for argument in FUNCTIONS[name].arrays]


class Elsewhere:
    """An array on a device that is neither the host nor CUDA's, by DLPack."""

    def __dlpack_device__(self):
        return 10, 0


WRONG_TYPES = {
    "a list": lambda array: array.tolist(),
    "a number": lambda array: 1.5,
    "text": lambda array: "weight",
    "masked": np.ma.masked_invalid,
    "elsewhere": lambda array: Elsewhere(),
    "integers": lambda array: array.astype(np.int32),
    "booleans": lambda array: array > 0,
    "complex": lambda array: array.astype(np.complex64),
    "longdouble": lambda array: array.astype(np.longdouble),
    "objects": lambda array: array.astype(object),
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "two bytes": lambda array: array.astype(ml_dtypes.bfloat16).view("V2"),
    "float8": lambda array: array.astype(ml_dtypes.float8_e4m3fn),
    "fields": lambda array: array.astype([("x", np.float32)]),
    "dates": lambda array: array.astype(np.int64).view("M8[s]"),
}


def called(name, **changed):
    function = FUNCTIONS[name]
    arrays = {argument: make() for argument, make in function.arrays.items()} | changed
    return function.call(**arrays)


def named(name, argument):
    """What an error calls an argument: the sequence of `awq_scales` numbers its members."""
    return r"weights\[0\]" if (name, argument) == ("awq_scales", "weight") else argument


@pytest.mark.parametrize("wrong", WRONG_TYPES)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_other_arrays_are_a_type_error_that_names_the_argument(name, argument, wrong):
    array = WRONG_TYPES[wrong](FUNCTIONS[name].arrays[argument]())
    with pytest.raises(TypeError, match=f"^{named(name, argument)}: expected"):
        called(name, **{argument: array})


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_none_is_a_type_error_that_names_the_argument(name, argument):
    if argument in FUNCTIONS[name].optional:
        called(name, **{argument: None})
        return
    with pytest.raises(TypeError, match=f"^{named(name, argument)}: expected an array, got None"):
        called(name, **{argument: None})


TOKENS = {
    ("InputStatistics", "inputs"),
    ("awq_channel_scores", "activations"),
    ("fisher_information", "gradients"),
    ("gptq_hessian_update", "x_block"),
}
"""Arguments that take any number of axes."""


@pytest.mark.parametrize("shape", ["no axes", "empty", "more axes", "wider"])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_other_shapes_are_a_value_error_that_names_an_argument(name, argument, shape):
    array = FUNCTIONS[name].arrays[argument]()
    other = {
        "no axes": np.array(1, array.dtype),
        "empty": array[..., :0],
        "more axes": array[(None,) * 4],
        "wider": np.concatenate([array, array], axis=-1),
    }[shape]
    taken = (name, argument) in TOKENS and shape == "more axes"
    alone = len(FUNCTIONS[name].arrays) == 1 and name not in (
        "InputStatistics",
        "GradientStatistics",
        "clipped_share",
        "gptq_inverse_hessian",
        "shrinkage_for",
    )
    if taken or (shape == "wider" and alone):
        called(name, **{argument: other})
        return
    arguments = "|".join(named(name, each) for each in FUNCTIONS[name].arrays)
    with pytest.raises(ValueError, match=rf"^({arguments}|quantized): expected .*got"):
        called(name, **{argument: other})


def values(result):
    """All numbers of a result, in order."""
    if isinstance(result, np.ndarray):
        return [result]
    if isinstance(result, (list, tuple)):
        return [array for item in result for array in values(item)]
    if isinstance(result, (InputStatistics, GradientStatistics)):
        return values(list(vars(result).values()))
    if dataclasses.is_dataclass(result):
        return values([getattr(result, field.name) for field in dataclasses.fields(result)])
    return [np.asarray(result)] if isinstance(result, (int, float)) else []


def assert_same(found, expected, rtol=0.0):
    found, expected = values(found), values(expected)
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert type(ours) is np.ndarray
        np.testing.assert_allclose(ours, theirs, rtol=rtol)


class Subclass(np.ndarray):
    def __array_finalize__(self, other):
        self.unit = "m"

    def reshape(self, *_):
        raise AssertionError("a subclass decided what its values mean")


SAME_VALUES = {
    "a subclass": lambda array: array.view(Subclass),
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "reversed": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "every other": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "of columns": np.asfortranarray,
    "unaligned": lambda array: (
        np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    ),
}


@pytest.mark.parametrize("form", SAME_VALUES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_values_matter(name, form):
    """Of whatever class and layout, but for the order of sums; results are plain arrays."""
    rtol = 1e-6 if form == "of columns" else 0
    arrays = {k: SAME_VALUES[form](make()) for k, make in FUNCTIONS[name].arrays.items()}
    assert_same(called(name, **arrays), called(name), rtol)


def test_a_matrix_of_numpy_is_read_as_an_array():
    assert_same(rtn(weight().view(np.matrix), **GRID), rtn(weight(), **GRID))
    assert_same(called("gptq", hessian=hessian().view(np.matrix)), called("gptq"))


def test_a_weight_is_converted_once_by_all_operations_of_a_call(monkeypatch):
    """What the first has taken is what the kernels of all get: no operation makes an array of it again."""
    converted = []
    plain = backend._plain

    def counted(array):
        taken = plain(array)
        if taken is not array and np.shares_memory(taken, given):
            converted.append(array)
        return taken

    monkeypatch.setattr(backend, "_plain", counted)
    given = weight().view(np.matrix)
    gptq(given, hessian(), **GRID, act_order="desc", static_groups=True)
    assert len(converted) == 1


OPTIONS = [
    ("symmetric", lambda value: rtn(weight(), **GRID, symmetric=value)),
    ("symmetric", lambda value: gptq(weight(), hessian(), **GRID, symmetric=value)),
    ("symmetric", lambda value: gptq_batch(*batch(), **GRID, symmetric=value)),
    ("symmetric", lambda value: awq_clip(weight(), hessian(), **GRID, symmetric=value)),
    ("symmetric", lambda value: awq_scales([weight()], hessian(), row(), **GRID, symmetric=value)),
    (
        "symmetric",
        lambda value: numbacalib.gptq_quantize_column(weight(), hessian(), 4, 4, value),
    ),
    ("static_groups", lambda value: gptq(weight(), hessian(), **GRID, static_groups=value)),
    ("static_groups", lambda value: gptq_batch(*batch(), **GRID, static_groups=value)),
    (
        "weight_term",
        lambda value: awq_scales([weight()], hessian(), row(), **GRID, weight_term=value),
    ),
]


def batch():
    return stacked(weight)(), stacked(hessian)()


@pytest.mark.parametrize("value", ["no", "", 0, 1, 0.0, None, np.array([True])], ids=repr)
@pytest.mark.parametrize(("name", "call"), OPTIONS)
def test_what_only_counts_as_true_is_no_bool(name, call, value):
    with pytest.raises(TypeError, match=f"^{name}: expected a bool, got {type(value).__name__}"):
        call(value)


@pytest.mark.parametrize(("name", "call"), OPTIONS[:1])
def test_numpys_bool_is_one(name, call):
    assert_same(call(np.True_), call(True))


@pytest.mark.parametrize(
    "value", ["int8", "half", np.int32, "float64", 5, None, "torch.float8", ()]
)
def test_other_scale_dtypes_are_a_type_error(value):
    if value == "half":  # NumPy's name
        assert rtn(weight(), **GRID, scale_dtype=value).scales.dtype == np.float16
        return
    with pytest.raises(TypeError, match="^scale_dtype: expected float16, bfloat16 or float32, got"):
        rtn(weight(), **GRID, scale_dtype=value)


class TorchDtype:
    """As torch's dtypes are written."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return f"torch.{self.name}"


@pytest.mark.parametrize(
    "value", ["bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16), TorchDtype("bfloat16")]
)
def test_names_of_bfloat16(value):
    quantized = rtn(weight(), **GRID, scale_dtype=value)
    assert quantized.scales.dtype == ml_dtypes.bfloat16
    assert quantized.dequantize(value).dtype == ml_dtypes.bfloat16
    assert codebook(weight(), bits=2).dequantize(value).dtype == ml_dtypes.bfloat16


def test_weights_come_in_floats():
    for value in ("float16", "float32", np.float64, TorchDtype("float32")):
        assert quantized().dequantize(value).dtype.kind == "f"
    for stored in (quantized(), codebook(weight(), bits=2)):
        with pytest.raises(
            TypeError, match="^dtype: expected float16, bfloat16, float32 or float64"
        ):
            stored.dequantize(np.int32)


def test_a_search_has_settings():
    with pytest.raises(TypeError, match="^search: expected a RangeSearch, got bool"):
        rtn(weight(), **GRID, search=True)


def test_layers_that_share_an_input_are_a_sequence():
    with pytest.raises(TypeError, match="^weights: expected a sequence of arrays, got ndarray"):
        awq_scales(weight(), hessian(), row(), **GRID)


@pytest.mark.parametrize("shape", [5, (), None, "3"])
def test_a_parameter_has_a_shape(shape):
    with pytest.raises(TypeError, match="^shape: expected"):
        GradientStatistics(shape)
