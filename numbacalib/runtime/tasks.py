"""Intrinsics for kernels that run tasks, each with BLAS on its own thread.

A pool that shares the processors with another (see `numbacalib.runtime.threads`) has threads of unequal
speed. So workers take tasks from a counter, and a slow worker does not delay the others. A task's result
does not depend on its worker.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

LEFT, LOWER = np.uint8(ord("L")), np.uint8(ord("L"))
NORMAL = np.uint8(ord("N"))


@intrinsic
def fetch_add(typing_context, counter):
    """Add 1 to ``counter[0]``, int64, atomically, and return its previous value."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", array.data, one, "monotonic")

    return types.int64(counter), generate


@intrinsic
def call_fortran(typing_context, address, arguments):
    """Call a subroutine of BLAS or LAPACK at an address, which is an argument of the kernel.

    A kernel with a constant address could not be cached on disk. `arguments` is a tuple: integers are
    passed as C ints, uint8 as characters, floats unchanged, all by reference, and arrays by their first
    element.
    """

    def generate(context, builder, signature, values):
        pointer = ir.IntType(8).as_pointer()
        references = []
        members = cgutils.unpack_tuple(builder, values[1], len(signature.args[1]))
        for kind, value in zip(signature.args[1], members, strict=True):
            if isinstance(kind, types.Array):
                reference = context.make_array(kind)(context, builder, value).data
            else:
                if isinstance(kind, types.Integer) and kind != types.uint8:
                    value = builder.trunc(value, ir.IntType(32))
                reference = cgutils.alloca_once_value(builder, value)
            references.append(builder.bitcast(reference, pointer))
        routine = ir.FunctionType(ir.VoidType(), [pointer] * len(references))
        builder.call(builder.inttoptr(values[0], routine.as_pointer()), references)
        return context.get_dummy_value()

    return types.void(address, arguments), generate
