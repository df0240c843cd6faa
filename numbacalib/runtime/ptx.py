"""PTX instructions as functions for `@cuda.jit` kernels, and the builder of such functions.

Every function names its instruction, documented in NVIDIA's "Parallel Thread Execution ISA", chapter 9.7.
Addresses in shared memory are 32-bit numbers from `shared_address`. Matrix products of a warp are in
`numbacalib.runtime.mma`, those of four in `wgmma`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

_LETTERS = {
    types.int32: "r",
    types.uint32: "r",
    types.uint16: "h",
    types.uint64: "l",
    types.float32: "f",
}


def instruction(
    text: str, returns: Any = types.void, *arguments: Any, pure: bool = False
) -> Callable:
    """Turn a documented stub into a function whose calls become `text`.

    They are not reordered with memory accesses, unless the instruction is `pure` arithmetic.
    """
    outputs = [] if returns == types.void else ["=" + _LETTERS[returns]]
    clobbers = [] if pure else ["~{memory}"]
    constraints = ",".join([*outputs, *(_LETTERS[kind] for kind in arguments), *clobbers])

    def decorate(stub: Callable) -> Callable:
        def build(typing_context, *_):
            def generate(context, builder, signature, values):
                result = context.get_value_type(returns) if outputs else ir.VoidType()
                kind = ir.FunctionType(result, [value.type for value in values])
                assembly = ir.InlineAsm(kind, text, constraints, side_effect=not pure)
                value = builder.call(assembly, values)
                return value if outputs else context.get_dummy_value()

            return returns(*arguments), generate

        definition: Any = build
        names = ["typing_context", *inspect.signature(stub).parameters]
        definition.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        definition.__name__, definition.__doc__ = stub.__name__, stub.__doc__
        return intrinsic(definition)

    return decorate


# Tuples


def unpack(builder, members, count):
    """Return the members of a tuple, such as the registers of a fragment, as LLVM values."""
    return [builder.extract_value(members, i) for i in range(count)]


def pack(builder, values, kind):
    """Put LLVM values into a tuple of this LLVM type."""
    members = ir.Constant(kind, ir.Undefined)
    for i, value in enumerate(values):
        members = builder.insert_value(members, value, i)
    return members


# Addresses


@intrinsic
def shared_address(typing_context, array):
    """`cvta.to.shared`: address of a shared array in the shared window."""

    def generate(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        window = builder.addrspacecast(data, ir.PointerType(data.type.pointee, 3))
        return builder.ptrtoint(window, ir.IntType(32))

    return types.uint32(array), generate


# Vectors


@intrinsic
def load_words(typing_context, matrix, row, column):
    """`ld.global.nc.v4.u32`: the 16 bytes of a matrix from ``[row, column]`` on, as four words.

    They start at a multiple of 16 bytes, and nothing writes to them while the kernel runs.
    """
    size = matrix.dtype.bitwidth // 8

    def generate(context, builder, signature, values):
        array = context.make_array(signature.args[0])(context, builder, values[0])
        long = ir.IntType(64)
        row_bytes = builder.mul(values[1], builder.extract_value(array.strides, 0))
        offset = builder.add(row_bytes, builder.mul(values[2], long(size)))
        address = builder.add(builder.ptrtoint(array.data, long), offset)
        vector = ir.PointerType(ir.VectorType(ir.IntType(32), 4), 1)
        loaded = builder.load(builder.inttoptr(address, vector), align=16)
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        words = [builder.extract_element(loaded, ir.IntType(32)(i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, words)

    words = types.UniTuple(types.uint32, 4)
    return words(matrix, types.int64, types.int64), generate


@intrinsic
def elements_of(typing_context, matrix, words):
    """Return the words of `load_words` as a tuple of elements; no instruction but for 16-bit ones."""
    width = matrix.dtype.bitwidth

    def generate(context, builder, signature, values):
        parts = unpack(builder, values[1], 4)
        if width == 16:
            shifted = [builder.lshr(part, part.type(16)) for part in parts]
            pairs = [half for pair in zip(parts, shifted, strict=True) for half in pair]
            parts = [builder.trunc(half, ir.IntType(16)) for half in pairs]
        elif width == 64:
            low, high = ([builder.zext(p, ir.IntType(64)) for p in parts[i::2]] for i in (0, 1))
            parts = [
                builder.or_(a, builder.shl(b, b.type(32))) for a, b in zip(low, high, strict=True)
            ]
        element = context.get_data_type(matrix.dtype)
        parts = [builder.bitcast(part, element) for part in parts]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(matrix.dtype, 128 // width)(matrix, words), generate


# Conditional memory accesses without a branch, so that several run at once


@instruction(
    """{
    .reg .pred wanted;
    setp.ne.u32 wanted, $2, 0;
    mov.f32 $0, 0f00000000;
    @wanted ld.global.f32 $0, [$1];
    }""",
    types.float32,
    types.uint64,
    types.uint32,
)
def load_if(address, wanted):
    """`ld.global.f32`: the number at `address`, or 0 and no access."""


@instruction("ld.global.nc.f32 $0, [$1];", types.float32, types.uint64, pure=True)
def load_constant(address):
    """`ld.global.nc.f32`: a number that does not change while the kernel runs."""


@instruction(
    """{
    .reg .pred wanted;
    setp.ne.u32 wanted, $2, 0;
    @wanted st.global.f32 [$0], $1;
    }""",
    types.void,
    types.uint64,
    types.float32,
    types.uint32,
)
def store_if(address, value, wanted):
    """`st.global.f32`: store `value` at `address`, or nothing."""


@instruction(
    """{
    .reg .pred wanted;
    setp.ne.u32 wanted, $2, 0;
    mov.u32 $0, 0;
    @wanted ld.global.u32 $0, [$1];
    }""",
    types.uint32,
    types.uint64,
    types.uint32,
)
def load_word_if(address, wanted):
    """`ld.global.u32`: the word at `address`, or 0 and no access."""


@instruction(
    """{
    .reg .pred wanted;
    setp.ne.u32 wanted, $2, 0;
    @wanted st.global.u32 [$0], $1;
    }""",
    types.void,
    types.uint64,
    types.uint32,
    types.uint32,
)
def store_word_if(address, value, wanted):
    """`st.global.u32`: store `value` at `address`, or nothing."""


# Arithmetic


@instruction("ex2.approx.ftz.f32 $0, $1;", types.float32, types.float32, pure=True)
def exp2(x):
    """`ex2.approx`: ``2**x``, within 2 ulp."""


@instruction(
    """{
    .reg .f32 other;
    shfl.sync.bfly.b32 other, $1, 1, 31, -1;
    add.f32 $0, $1, other;
    shfl.sync.bfly.b32 other, $0, 2, 31, -1;
    add.f32 $0, $0, other;
    }""",
    types.float32,
    types.float32,
)
def sum_of_four(x):
    """`shfl.sync.bfly`: sum over the four threads whose numbers differ in the last two bits."""


# Conversions


@instruction("cvt.rn.f16x2.f32 $0, $2, $1;", types.uint32, types.float32, types.float32, pure=True)
def pack_halves(low, high):
    """`cvt.rn.f16x2.f32`: two floats as float16, `low` in the low 16 bits."""


# Clusters of blocks


def cluster(size: int) -> Callable:
    """Build a statement for the body of a kernel that makes `size` blocks of its grid a cluster."""

    @intrinsic
    def declare(typing_context):
        """`.reqnctapercluster`, through NVVM's annotation of the kernel."""

        def generate(context, builder, signature, values):
            module = builder.module
            annotations = cgutils.get_or_insert_named_metadata(module, "nvvm.annotations")
            for axis, blocks in ("x", size), ("y", 1), ("z", 1):
                name = ir.MetaDataString(module, f"cluster_dim_{axis}")
                number = ir.Constant(ir.IntType(32), blocks)
                annotations.add(module.add_metadata((builder.function, name, number)))
            return context.get_dummy_value()

        return types.void(), generate

    return declare


cluster_of_two = cluster(2)


@instruction("mov.u32 $0, %cluster_ctarank;", types.uint32, pure=True)
def cluster_rank():
    """`%cluster_ctarank`: number of this block in its cluster."""


@instruction("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;")
def cluster_sync():
    """`barrier.cluster`: wait for all threads of the cluster."""


# Barriers in shared memory


@instruction("mbarrier.init.shared::cta.b64 [$0], $1;", types.void, types.uint32, types.uint32)
def barrier_init(barrier, count):
    """`mbarrier.init`: a phase completes after `count` arrivals and all the bytes it expects."""


@instruction("fence.mbarrier_init.release.cluster;")
def fence_barrier_init():
    """`fence.mbarrier_init`: barriers set up so far may be used by the cluster and its copies."""


@instruction(
    """{
    .reg .b32 there;
    mapa.shared::cluster.u32 there, $0, $1;
    mbarrier.arrive.shared::cluster.b64 _, [there];
    }""",
    types.void,
    types.uint32,
    types.uint32,
)
def barrier_arrive(barrier, rank):
    """`mbarrier.arrive` on the barrier at this address in block `rank` of the cluster."""


@instruction(
    """{
    .reg .pred one;
    elect.sync _|one, 0xffffffff;
    @one mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;
    }""",
    types.void,
    types.uint32,
    types.uint32,
)
def barrier_expect(barrier, size):
    """`mbarrier.arrive.expect_tx` by one thread of the warp: the phase waits for `size` bytes more."""


@instruction(
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


@instruction("setmaxnreg.dec.sync.aligned.u32 40;")
def registers_shrink():
    """`setmaxnreg.dec`: keep 40 registers per thread, release the rest."""


@instruction("setmaxnreg.inc.sync.aligned.u32 232;")
def registers_grow():
    """`setmaxnreg.inc`: wait until 232 registers per thread are free, and take them."""


# Tensor copies


@instruction("fence.proxy.tensormap::generic.acquire.gpu [$0], 128;", types.void, types.uint64)
def tensormap_acquire(tensormap):
    """`fence.proxy.tensormap`: a map in global memory may be used after this."""


def _copy_box(operands: str, *ranks: Any) -> Callable:
    return instruction(
        f"""{{
        .reg .pred one;
        elect.sync _|one, 0xffffffff;
        @one cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes{operands};
        }}""",
        types.void,
        types.uint32,
        types.uint64,
        types.int32,
        types.int32,
        types.uint32,
        *ranks,
    )


@_copy_box(" [$0], [$1, {$2, $3}], [$4]")
def copy_box(target, tensormap, column, row, barrier):
    """`cp.async.bulk.tensor.2d` by one thread of the warp: copy the map's box at (row, column).

    Beyond the map's edges it is zero. `barrier` counts the bytes.
    """


@_copy_box(".multicast::cluster [$0], [$1, {$2, $3}], [$4], $5", types.uint16)
def copy_box_to(target, tensormap, column, row, barrier, ranks):
    """As `copy_box`, to this address and barrier in all blocks whose bits are set in `ranks`."""
