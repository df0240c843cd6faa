"""PTX instructions of a warp's matrix products, as functions of fragments; see `numbacalib.runtime.ptx`.

A fragment is a tuple: float32 for sums, uint32 for two 16-bit floats. Fragments of 16 rows have the layout
of the instructions: thread ``lane`` holds rows ``lane // 4`` and 8 below, and of each 8 columns the two
from ``lane % 4 * 2`` on; for sums these are four registers, two of the first row and two of the second.

Tiles in shared memory have rows of a multiple of 128 bytes, whose chunks of 16 bytes are permuted: chunk c
of row r is at ``c ^ (r % 8)``, so that the eight rows of an 8 x 8 matrix are in different banks.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from numbacalib.runtime.ptx import instruction, pack, unpack

_FLOAT, _WORD = ir.FloatType(), ir.IntType(32)


@instruction(
    "cp.async.cg.shared.global [$0], [$1], 16, $2;",
    types.void,
    types.uint32,
    types.uint64,
    types.uint32,
)
def copy_chunk(target, source, size):
    """`cp.async.cg`: start copying `size` bytes, 0 or 16, to shared memory; the rest of 16 becomes 0."""


@instruction("cp.async.commit_group; cp.async.wait_group 0;")
def copies_wait():
    """`cp.async.wait_group`: all copies that this thread started are done."""


def _assembly(builder: Any, text: str, constraints: str, result: Any, *values: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=True), values)


def _load_matrices(builder: Any, address: Any, offset: int, form: str) -> list[Any]:
    """`ldmatrix.x4`: four 8 x 8 matrices of 16-bit floats, one register each."""
    text = f"ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{$0, $1, $2, $3}}, [$4+{offset}];"
    kind = ir.LiteralStructType([_WORD] * 4)
    loaded = _assembly(builder, text, "=r,=r,=r,=r,r,~{memory}", kind, address)
    return unpack(builder, loaded, 4)


def fragments(element: str, size: int, width: int, keys: int) -> SimpleNamespace:
    """Build the products of attention for tiles of `keys` keys.

    `element` is "bf16" or "f16"; a head's query has `size` numbers and its value `width`, multiples of 64;
    `keys` is a multiple of 16. The functions:

    scores(queries, address, offsets)
        Products of a warp's 16 queries with the keys of a tile.
    add_values(sums, weights, address, offsets)
        Add weights times the values of a tile to a warp's sums.
    weigh(scores, first, second, scale)
        ``2**(scale * score - first)``, `second` for the second rows: packed weights, and their sums.
    largest(scores, first, second)
        Largest of the given number and all scores of each row, over the threads that share the row.
    scaled(sums, first, second)
        Sums of both rows, each times its factor.
    packed(sums)
        Sums as 16-bit floats, two in a word.
    nothing()
        Sums of 0.
    """
    score = types.UniTuple(types.float32, keys // 2)
    weight = types.UniTuple(types.uint32, keys // 4)
    total = types.UniTuple(types.float32, width // 2)

    def multiply(builder: Any, sums: list[Any], a: list[Any], b: list[Any]) -> list[Any]:
        text = (
            f"mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        kind = ir.LiteralStructType([_FLOAT] * 4)
        constraints = "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f"
        function = ir.FunctionType(kind, [_WORD] * 6 + [_FLOAT] * 4)
        assembly = ir.InlineAsm(function, text, constraints, side_effect=False)
        return unpack(builder, builder.call(assembly, [*a, *b, *sums]), 4)

    @intrinsic
    def scores(typing_context, queries, address, offsets):
        """`mma.sync`: products of queries with keys, summed over the numbers of a head."""

        def generate(context, builder, signature, values):
            steps = size // 16
            a = unpack(builder, values[0], 4 * steps)
            places = [
                builder.add(values[1], offset) for offset in unpack(builder, values[2], steps)
            ]
            sums = [[ir.Constant(_FLOAT, 0.0)] * 4 for _ in range(keys // 8)]
            for step in range(steps):
                for pair in range(keys // 16):
                    b = _load_matrices(builder, places[step], 32 * pair * size, "")
                    for half in range(2):
                        tile = 2 * pair + half
                        operand = b[2 * half : 2 * half + 2]
                        sums[tile] = multiply(
                            builder, sums[tile], a[4 * step : 4 * step + 4], operand
                        )
            flat = [value for tile in sums for value in tile]
            return pack(builder, flat, context.get_value_type(score))

        return score(queries, types.uint32, offsets), generate

    @intrinsic
    def add_values(typing_context, sums, weights, address, offsets):
        """`mma.sync`: add products of weights with values, summed over the keys of a tile."""

        def generate(context, builder, signature, values):
            o = unpack(builder, values[0], width // 2)
            p = unpack(builder, values[1], keys // 4)
            places = [
                builder.add(values[2], offset) for offset in unpack(builder, values[3], width // 16)
            ]
            for step in range(keys // 16):
                for pair in range(width // 16):
                    b = _load_matrices(builder, places[pair], 32 * step * width, ".trans")
                    for half in range(2):
                        at = 4 * (2 * pair + half)
                        operand = b[2 * half : 2 * half + 2]
                        o[at : at + 4] = multiply(
                            builder, o[at : at + 4], p[4 * step : 4 * step + 4], operand
                        )
            return pack(builder, o, values[0].type)

        return total(sums, weights, types.uint32, offsets), generate

    @intrinsic
    def weigh(typing_context, given, first, second, scale):
        """`ex2.approx` and `cvt.rn`: weights, two in a register, and the sums of both rows."""
        result = types.Tuple((weight, types.float32, types.float32))

        def generate(context, builder, signature, values):
            s = unpack(builder, values[0], keys // 2)
            sums = [ir.Constant(_FLOAT, 0.0)] * 2
            packed = []
            for i in range(0, len(s), 2):
                row = i // 2 % 2
                pair = []
                for value in s[i : i + 2]:
                    power = builder.fsub(builder.fmul(value, values[3]), values[1 + row])
                    number = _assembly_pure(builder, "ex2.approx.ftz.f32 $0, $1;", "=f,f", power)
                    sums[row] = builder.fadd(sums[row], number)
                    pair.append(number)
                text = f"cvt.rn.{element}x2.f32 $0, $2, $1;"
                packed.append(_assembly_pure(builder, text, "=r,f,f", *pair, result=_WORD))
            p = pack(builder, packed, context.get_value_type(weight))
            return context.make_tuple(builder, signature.return_type, [p, *sums])

        return result(given, types.float32, types.float32, types.float32), generate

    @intrinsic
    def largest(typing_context, given, first, second):
        """`shfl.sync.bfly`: maxima of both rows over the four threads that share them."""
        result = types.UniTuple(types.float32, 2)

        def generate(context, builder, signature, values):
            s = unpack(builder, values[0], keys // 2)
            peaks = []
            for row in range(2):
                peak = values[1 + row]
                for value in (s[i] for i in range(len(s)) if i // 2 % 2 == row):
                    peak = _assembly_pure(builder, "max.NaN.f32 $0, $1, $2;", "=f,f,f", peak, value)
                for distance in (1, 2):
                    text = f"shfl.sync.bfly.b32 $0, $1, {distance}, 31, -1;"
                    other = _assembly(builder, text, "=f,f", _FLOAT, peak)
                    peak = _assembly_pure(builder, "max.NaN.f32 $0, $1, $2;", "=f,f,f", peak, other)
                peaks.append(peak)
            return context.make_tuple(builder, signature.return_type, peaks)

        return result(given, types.float32, types.float32), generate

    @intrinsic
    def scaled(typing_context, sums, first, second):
        """`mul.f32` of the sums of both rows by a factor of each."""

        def generate(context, builder, signature, values):
            o = unpack(builder, values[0], width // 2)
            o = [builder.fmul(value, values[1 + i // 2 % 2]) for i, value in enumerate(o)]
            return pack(builder, o, values[0].type)

        return total(sums, types.float32, types.float32), generate

    @intrinsic
    def packed(typing_context, sums):
        """`cvt.rn`: sums as 16-bit floats, two in a register."""
        result = types.UniTuple(types.uint32, width // 4)

        def generate(context, builder, signature, values):
            o = unpack(builder, values[0], width // 2)
            text = f"cvt.rn.{element}x2.f32 $0, $2, $1;"
            words = [
                _assembly_pure(builder, text, "=r,f,f", *o[i : i + 2], result=_WORD)
                for i in range(0, len(o), 2)
            ]
            return pack(builder, words, context.get_value_type(result))

        return result(sums), generate

    @intrinsic
    def nothing(typing_context):
        """Sums of 0."""

        def generate(context, builder, signature, values):
            zero = ir.Constant(_FLOAT, 0.0)
            return pack(builder, [zero] * (width // 2), context.get_value_type(total))

        return total(), generate

    return SimpleNamespace(
        scores=scores,
        add_values=add_values,
        weigh=weigh,
        largest=largest,
        scaled=scaled,
        packed=packed,
        nothing=nothing,
    )


def _assembly_pure(
    builder: Any, text: str, constraints: str, *values: Any, result: Any = _FLOAT
) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=False), values)


@intrinsic
def masked(typing_context, scores, key, low, high):
    """Scores of a tile, -3e38 where a key is masked.

    `key` is the number of the thread's first key; a key j counts if ``low[row] <= j < high[row]``; `low`
    and `high` are pairs, for both rows.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        count = signature.return_type.count
        s = unpack(builder, values[0], count)
        low, high = (unpack(builder, value, 2) for value in values[2:])
        hidden = ir.Constant(_FLOAT, -3e38)
        results = []
        for i, value in enumerate(s):
            row = i // 2 % 2
            j = builder.add(values[1], ir.Constant(_WORD, i // 4 * 8 + i % 2))
            seen = builder.and_(
                builder.icmp_signed(">=", j, low[row]), builder.icmp_signed("<", j, high[row])
            )
            results.append(builder.select(seen, value, hidden))
        return pack(builder, results, values[0].type)

    pair = types.UniTuple(types.int32, 2)
    return scores(scores, types.int32, pair, pair), generate


def words(count: int) -> Callable:
    """Build ``function(word, *arguments)`` for each i below `count`, as a tuple of uint32."""

    @intrinsic
    def build(typing_context, function, arguments):
        """Tuple of a device function's results for 0 to `count` - 1."""
        inner = function.get_call_type(typing_context, (types.int32, *arguments.types), {})
        result = types.UniTuple(types.uint32, count)

        def generate(context, builder, signature, values):
            apply = context.get_function(function, inner)
            context.add_linking_libs(getattr(apply, "libs", ()))
            others = [builder.extract_value(values[1], i) for i in range(len(signature.args[1]))]
            found = [apply(builder, [ir.Constant(_WORD, i), *others]) for i in range(count)]
            return pack(builder, found, context.get_value_type(result))

        return result(function, arguments), generate

    return build


def each(count: int) -> Callable:
    """Build a call of ``function(word, i, *arguments)`` for each of a tuple's `count` words."""

    @intrinsic
    def call(typing_context, given, function, arguments):
        """Call a device function with each word of a tuple and its number."""
        inner = function.get_call_type(
            typing_context, (types.uint32, types.int32, *arguments.types), {}
        )

        def generate(context, builder, signature, values):
            apply = context.get_function(function, inner)
            context.add_linking_libs(getattr(apply, "libs", ()))
            others = [builder.extract_value(values[2], i) for i in range(len(signature.args[2]))]
            for i, word in enumerate(unpack(builder, values[0], count)):
                apply(builder, [word, ir.Constant(_WORD, i), *others])
            return context.get_dummy_value()

        return types.void(given, function, arguments), generate

    return call
