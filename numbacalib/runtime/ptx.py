"""PTX instructions as functions for `@cuda.jit` kernels: the one file that holds inline assembly.

Every function names its instruction; what it does is in NVIDIA's "Parallel Thread Execution ISA",
chapter 9.7, under that name. Addresses in shared memory are 32-bit numbers, as `shared_address`
returns them. A tuple of float32 stands for a thread's registers of a matrix fragment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

_LETTERS = {
    types.int32: "r",
    types.uint32: "r",
    types.uint64: "l",
    types.float32: "f",
}


def _instruction(text: str, returns: Any = types.void, *arguments: Any) -> Callable:
    """Turn a documented stub into a function whose calls become `text`, in program order."""
    outputs = [] if returns == types.void else ["=" + _LETTERS[returns]]
    constraints = ",".join([*outputs, *(_LETTERS[kind] for kind in arguments), "~{memory}"])

    def decorate(stub: Callable) -> Callable:
        def definition(typing_context, *_):
            def generate(context, builder, signature, values):
                result = context.get_value_type(returns) if outputs else ir.VoidType()
                kind = ir.FunctionType(result, [value.type for value in values])
                assembly = ir.InlineAsm(kind, text, constraints, side_effect=True)
                value = builder.call(assembly, values)
                return value if outputs else context.get_dummy_value()

            return returns(*arguments), generate

        names = ["typing_context", *inspect.signature(stub).parameters]
        definition.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        definition.__name__, definition.__doc__ = stub.__name__, stub.__doc__
        return intrinsic(definition)

    return decorate


# Addresses


@intrinsic
def shared_address(typing_context, array):
    """`cvta.to.shared`: address of a shared array in the shared window."""

    def generate(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        window = builder.addrspacecast(data, ir.PointerType(data.type.pointee, 3))
        return builder.ptrtoint(window, ir.IntType(32))

    return types.uint32(array), generate


@intrinsic
def global_address(typing_context, array):
    """Address of an array's first element."""

    def generate(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.uint64(array), generate


# Conversions


@_instruction("cvt.rn.f16x2.f32 $0, $2, $1;", types.uint32, types.float32, types.float32)
def pack_halves(low, high):
    """`cvt.rn.f16x2.f32`: two floats as float16, `low` in the low 16 bits."""


# Barriers in shared memory


@_instruction(
    "mbarrier.init.shared::cta.b64 [$0], $1;", types.void, types.uint32, types.uint32
)
def barrier_init(barrier, count):
    """`mbarrier.init`: a phase completes after `count` arrivals and all the bytes it expects."""


@_instruction("fence.proxy.async;")
def fence_proxy_async():
    """`fence.proxy.async`: earlier ordinary accesses come before those of the copy engine."""


@_instruction("mbarrier.arrive.shared::cta.b64 _, [$0];", types.void, types.uint32)
def barrier_arrive(barrier):
    """`mbarrier.arrive`: one arrival; what the thread did before is visible to those who wait."""


@_instruction(
    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;",
    types.void,
    types.uint32,
    types.uint32,
)
def barrier_expect(barrier, size):
    """`mbarrier.arrive.expect_tx`: one arrival, and the phase waits for `size` bytes more."""


@_instruction(
    """{
    .reg .pred done;
    AGAIN:
    mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;
    @!done bra AGAIN;
    }""",
    types.void,
    types.uint32,
    types.uint32,
)
def barrier_wait(barrier, parity):
    """`mbarrier.try_wait.parity`, repeated until the phase of this parity is complete."""


# Registers of a warpgroup: the split is by role, so the numbers are fixed


@_instruction("setmaxnreg.dec.sync.aligned.u32 40;")
def registers_shrink():
    """`setmaxnreg.dec`: keep 40 registers a thread, give back the rest."""


@_instruction("setmaxnreg.inc.sync.aligned.u32 232;")
def registers_grow():
    """`setmaxnreg.inc`: wait until 232 registers a thread are free, and take them."""


# Tensor copies


@_instruction("fence.proxy.tensormap::generic.acquire.gpu [$0], 128;", types.void, types.uint64)
def tensormap_acquire(tensormap):
    """`fence.proxy.tensormap`: a map that lies in global memory is about to be used."""


@_instruction(
    "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
    "[$0], [$1, {$2, $3}], [$4];",
    types.void,
    types.uint32,
    types.uint64,
    types.int32,
    types.int32,
    types.uint32,
)
def copy_box(target, tensormap, column, row, barrier):
    """`cp.async.bulk.tensor.2d`: copy the map's box at (row, column), zeros beyond its edges."""


# Matrix fragments


def _unpack(builder, fragment, count):
    return [builder.extract_value(fragment, i) for i in range(count)]


def _pack(builder, values, kind):
    fragment = ir.Constant(kind, ir.Undefined)
    for i, value in enumerate(values):
        fragment = builder.insert_value(fragment, value, i)
    return fragment


def _in_place(context, builder, signature, values, text, letters=()):
    """Emit assembly on the registers of a fragment, the first value, and return it as updated."""
    count = signature.return_type.count
    fragment, *others = values
    floats = [ir.FloatType()] * count
    kind = ir.FunctionType(
        ir.LiteralStructType(floats), floats + [value.type for value in others]
    )
    tied = [str(i) for i in range(count)]
    constraints = ",".join(["=f"] * count + tied + list(letters) + ["~{memory}"])
    assembly = ir.InlineAsm(kind, text, constraints, side_effect=True)
    results = builder.call(assembly, _unpack(builder, fragment, count) + others)
    return _pack(builder, _unpack(builder, results, count), fragment.type)


def _wgmma(element):
    """Build the product of a warpgroup for operands whose summed axis is the slow one."""

    @intrinsic
    def wgmma(typing_context, fragment, a, b, keep):
        """`wgmma.mma_async`: add the product of 64 rows of A^T and B, or start from it if not `keep`.

        `a` and `b` are matrix descriptors of 64-row blocks in shared memory. The result is there
        after a wait; until then the registers must not be used.
        """

        def generate(context, builder, signature, values):
            count = signature.return_type.count
            registers = ", ".join(f"${i}" for i in range(count))
            a, b, keep = (f"${2 * count + i}" for i in range(3))
            shape = f"m64n{2 * count}k16.f32.{element}.{element}"
            lines = ["{ .reg .pred keep, yes; .reg .b64 da, db;"]
            lines += [f"setp.ne.u32 keep, {keep}, 0; setp.eq.u32 yes, 0, 0;"]
            lines += ["wgmma.fence.sync.aligned;"]
            for step in range(4):
                # 16 rows of 128 bytes further, in the descriptor's units of 16 bytes
                lines += [f"add.u64 da, {a}, {128 * step}; add.u64 db, {b}, {128 * step};"]
                lines += [f"wgmma.mma_async.sync.aligned.{shape} {{{registers}}}, da, db,"]
                lines += [f"{'yes' if step else 'keep'}, 1, 1, 1, 1;"]
            lines += ["wgmma.commit_group.sync.aligned; }"]
            return _in_place(context, builder, signature, values, "\n".join(lines), "llr")

        return fragment(fragment, types.uint64, types.uint64, types.uint32), generate

    return wgmma


wgmma_bf16 = _wgmma("bf16")
wgmma_f16 = _wgmma("f16")


@intrinsic
def wgmma_wait(typing_context, fragment):
    """`wgmma.wait_group 0`: all products are done, and the fragment may be used."""

    def generate(context, builder, signature, values):
        return _in_place(context, builder, signature, values, "wgmma.wait_group.sync.aligned 0;")

    return fragment(fragment), generate


@_instruction("wgmma.wait_group.sync.aligned 1;")
def wgmma_wait_previous():
    """`wgmma.wait_group 1`: all products but the last are done with their shared memory."""


@intrinsic
def fragment_add(typing_context, left, right):
    """`add.rn.f32` of two fragments, element by element."""

    def generate(context, builder, signature, values):
        count = signature.return_type.count
        left, right = (_unpack(builder, value, count) for value in values)
        sums = [builder.fadd(a, b) for a, b in zip(left, right, strict=True)]
        return _pack(builder, sums, values[0].type)

    return left(left, right), generate


@intrinsic
def fragment_store(typing_context, fragment, slab, address, stride):
    """`st.shared.v2.f32`: store a thread's part of 16 rows and 32 columns of a wgmma result.

    Registers come in fours: two neighbours of a row, the same two 8 rows below; the next four are 8
    columns to the right. `slab` counts runs of 32 columns, `address` is that of the thread's first
    pair, and `stride` the bytes from a row to the row 8 below.
    """

    def generate(context, builder, signature, values):
        fragment, slab, address, stride = values
        registers = _unpack(builder, fragment, signature.args[0].count)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32), ir.FloatType(), ir.FloatType()])
        below = builder.add(address, stride)
        done = builder.append_basic_block("stored")
        # the slab is known at run time only, registers have no index: one case a slab
        cases = builder.switch(slab, done)
        for number in range(len(registers) // 16):
            block = builder.append_basic_block("slab")
            cases.add_case(number, block)
            builder.position_at_end(block)
            for i in range(0, 16, 4):
                text = f"st.shared.v2.f32 [$0+{8 * i}], {{$1, $2}};"
                store = ir.InlineAsm(kind, text, "r,f,f,~{memory}", side_effect=True)
                four = registers[16 * number + i : 16 * number + i + 4]
                builder.call(store, [address, *four[:2]])
                builder.call(store, [below, *four[2:]])
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(fragment, types.uint32, types.uint32, types.uint32), generate
