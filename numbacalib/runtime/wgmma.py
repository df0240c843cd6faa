"""PTX instructions of a warpgroup's matrix products, as functions of fragments; see `runtime.ptx`.

A fragment is a thread's registers of the result, a tuple of float32.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from numbacalib.runtime.ptx import pack, unpack


def _in_place(builder, registers, text, others=(), letters=""):
    """Emit assembly that reads and writes `registers`, and return their new values."""
    count = len(registers)
    floats = [ir.FloatType()] * count
    kind = ir.FunctionType(ir.LiteralStructType(floats), floats + [value.type for value in others])
    tied = [str(i) for i in range(count)]
    constraints = ",".join(["=f"] * count + tied + list(letters) + ["~{memory}"])
    assembly = ir.InlineAsm(kind, text, constraints, side_effect=True)
    return unpack(builder, builder.call(assembly, [*registers, *others]), count)


def adder_of_products(element: str, rows: int) -> Callable:
    """Build the product of a warpgroup for operands whose summed axis is the slow one.

    `element` is "bf16" or "f16"; `rows` are multiplied, 16 per instruction.
    """

    @intrinsic
    def multiply(typing_context, fragment, a, b, keep):
        """`wgmma.mma_async`: add the product of A^T and B, or start from it if not `keep`.

        `a` and `b` are matrix descriptors of operands in shared memory. The registers hold the result after
        a `wait`, and must not be used before.
        """

        def generate(context, builder, signature, values):
            count = signature.return_type.count
            registers = ", ".join(f"${i}" for i in range(count))
            a, b, keep = (f"${2 * count + i}" for i in range(3))
            shape = f"m64n{2 * count}k16.f32.{element}.{element}"
            lines = ["{ .reg .pred keep, yes; .reg .b64 da, db;"]
            lines += [f"setp.ne.u32 keep, {keep}, 0; setp.eq.u32 yes, 0, 0;"]
            lines += ["wgmma.fence.sync.aligned;"]
            for step in range(rows // 16):
                # 16 rows of 128 bytes further, in the descriptor's units of 16 bytes
                lines += [f"add.u64 da, {a}, {128 * step}; add.u64 db, {b}, {128 * step};"]
                lines += [f"wgmma.mma_async.sync.aligned.{shape} {{{registers}}}, da, db,"]
                lines += [f"{'yes' if step else 'keep'}, 1, 1, 1, 1;"]
            lines += ["wgmma.commit_group.sync.aligned; }"]
            registers = unpack(builder, values[0], count)
            results = _in_place(builder, registers, "\n".join(lines), values[1:], "llr")
            return pack(builder, results, values[0].type)

        return fragment(fragment, types.uint64, types.uint64, types.uint32), generate

    return multiply


@intrinsic
def wait(typing_context, fragment):
    """`wgmma.wait_group 0`: all products are done, and the fragment may be used."""

    def generate(context, builder, signature, values):
        registers = unpack(builder, values[0], signature.return_type.count)
        results = _in_place(builder, registers, "wgmma.wait_group.sync.aligned 0;")
        return pack(builder, results, values[0].type)

    return fragment(fragment), generate


@intrinsic
def fragment_add(typing_context, left, right):
    """`add.rn.f32` of two fragments, element by element."""

    def generate(context, builder, signature, values):
        count = signature.return_type.count
        left, right = (unpack(builder, value, count) for value in values)
        sums = [builder.fadd(a, b) for a, b in zip(left, right, strict=True)]
        return pack(builder, sums, values[0].type)

    return left(left, right), generate


@intrinsic
def fragment_map(typing_context, fragment, function, row, column, arguments):
    """Apply ``function(element, row, column, *arguments)`` to a thread's elements of a wgmma result.

    `function` is a device function; `row` and `column` are those of the warp's first element.
    Registers come in fours: two neighbors of a row, the same two 8 rows below; the next four are 8
    columns to the right.
    """
    inner = function.get_call_type(
        typing_context, (types.float32, types.int64, types.int64, *arguments.types), {}
    )

    def generate(context, builder, signature, values):
        fragment, _, row, column, arguments = values
        apply = context.get_function(function, inner)
        context.add_linking_libs(getattr(apply, "libs", ()))
        registers = unpack(builder, fragment, signature.return_type.count)
        others = [builder.extract_value(arguments, i) for i in range(len(signature.args[4]))]
        results = []
        for i, value in enumerate(registers):
            r = builder.add(row, ir.Constant(row.type, i // 2 % 2 * 8))
            c = builder.add(column, ir.Constant(column.type, i // 4 * 8 + i % 2))
            results.append(apply(builder, [value, r, c, *others]))
            if i % 32 == 31:
                # a barrier for later reads: enough overlap already, and more would need registers
                results[-32:] = _in_place(builder, results[-32:], "")
        return pack(builder, results, fragment.type)

    return fragment(fragment, function, types.int64, types.int64, arguments), generate


@intrinsic
def fragment_store(typing_context, fragment, slab, address, stride):
    """`st.shared.v2.f32`: store a thread's part of 16 rows and 32 columns of a wgmma result.

    Registers come in fours: two neighbors of a row, the same two 8 rows below; the next four are 8
    columns to the right. `slab` counts runs of 32 columns, `address` is that of the thread's first
    pair, and `stride` the bytes from a row to the row 8 below.
    """

    def generate(context, builder, signature, values):
        fragment, slab, address, stride = values
        registers = unpack(builder, fragment, signature.args[0].count)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32), ir.FloatType(), ir.FloatType()])
        below = builder.add(address, stride)
        done = builder.append_basic_block("stored")
        # registers cannot be indexed at run time: one case per slab
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
