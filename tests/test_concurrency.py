"""Threads, processes and thread limits: many callers at once get the answers that one gets."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import random_hessian, random_matrix

import numbacalib
from numbacalib.methods import gptq, rtn

ROOT = Path(__file__).parent.parent
CALLERS = 4

INPUTS = """
import json, os
import numpy as np
import numbacalib
from numbacalib.methods import gptq
x = np.random.default_rng(7).normal(size=(3000, 200)).astype(np.float32)
w = np.random.default_rng(8).normal(size=(150, 200)).astype(np.float32)
"""
REDUCTIONS = """
results = [
    function(matrix.astype(dtype))
    for matrix in (x, np.asfortranarray(x), x.T)
    for dtype in (np.float16, np.float32)
    for function in (numbacalib.fisher_information, lambda m: numbacalib.awq_channel_scores(m, m))
]
print(json.dumps([result.tobytes().hex() for result in results]))
"""
EVERYTHING = """
h = numbacalib.gptq_hessian_update(np.zeros((200, 200), np.float32), x)
numbacalib.fisher_information(x)
numbacalib.awq_channel_scores(x, w)
numbacalib.gptq_quantize_column(w, numbacalib.gptq_inverse_hessian(h), 4, 50, False)
gptq(w, h, bits=4, group_size=50)
"""
DECODE = """
import json
import numpy as np
from numbacalib.ops.grid.cpu import decode
from numbacalib.spec.grid import Grid
codes, one = np.array([[5, 7]], np.uint8), np.ones((1, 1), np.float32)
values = decode(codes, one, 2 * one.astype(np.uint8), np.zeros(2, np.int64), Grid(4, False))
print(json.dumps(values.tolist()))
"""
THREADS = "print(json.dumps(len(os.listdir('/proc/self/task'))))"


def start(code, folder=None, **environment):
    """Start a fresh Python that sees the package, in a folder; a variable that is None is unset."""
    variables = {**os.environ, **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={name: value for name, value in variables.items() if value is not None},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process):
    """What a process that `start` started prints as JSON."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output)


def calls():
    """Every operation and method as a call without arguments that returns arrays."""
    x = random_matrix(1, (2000, 96), np.float32)
    w = random_matrix(2, (200, 96), np.float32)
    half = x.astype(np.float16)
    h = random_hessian(3, 96).astype(np.float32)
    u = numbacalib.gptq_inverse_hessian(h)
    return {
        "awq_channel_scores": lambda: [numbacalib.awq_channel_scores(x, w)],
        "fisher_information": lambda: [numbacalib.fisher_information(x)],
        "gptq_hessian_update": lambda: [numbacalib.gptq_hessian_update(h, x)],
        "gptq_hessian_update of float16": lambda: [numbacalib.gptq_hessian_update(h, half)],
        "gptq_inverse_hessian": lambda: [numbacalib.gptq_inverse_hessian(h)],
        "gptq_quantize_column": lambda: numbacalib.gptq_quantize_column(w, u, 4, 32, False),
        "gptq": lambda: [gptq(w, h, bits=4, group_size=32).codes],
        "rtn": lambda: [rtn(w, bits=4, group_size=32).codes],
    }


def check_callers(rounds):
    """Run every call in several threads at once, each thread in another order, and compare."""
    expected = {name: call() for name, call in calls().items()}

    def caller(seed):
        mine = calls()
        names = list(mine) * rounds
        np.random.default_rng(seed).shuffle(names)
        return [(name, mine[name]()) for name in names]

    with ThreadPoolExecutor(CALLERS) as threads:
        for results in threads.map(caller, range(CALLERS)):
            assert len(results) == rounds * len(expected)
            for name, arrays in results:
                for array, right in zip(arrays, expected[name], strict=True):
                    np.testing.assert_array_equal(array, right, err_msg=name)


def test_threads_call_every_operation_at_once():
    check_callers(rounds=5)


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_threads_call_at_once_on_every_threading_layer(layer):
    """Numba aborts the process when its workqueue is entered twice at once."""
    code = "import json, numba, test_concurrency as t; t.check_callers(rounds=3)\n"
    code += "print(json.dumps(numba.threading_layer()))"
    process = start(code, NUMBA_THREADING_LAYER=layer)
    assert result_of(process) == layer


def test_two_processes_start_on_a_cold_cache(tmp_path):
    code = INPUTS + "print(json.dumps(numbacalib.fisher_information(x).tolist()))"
    both = [start(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    first, second = map(result_of, both)
    assert first == second
    kernels = {file.name for file in tmp_path.rglob("*.nbc")}
    assert kernels
    assert result_of(start(code, NUMBA_CACHE_DIR=str(tmp_path))) == first
    assert {file.name for file in tmp_path.rglob("*.nbc")} == kernels, "compiled again"


def test_a_cached_kernel_follows_the_sources_of_other_files(tmp_path):
    package = tmp_path / "numbacalib"
    shutil.copytree(ROOT / "numbacalib", package, ignore=shutil.ignore_patterns("__pycache__"))
    formula = package / "spec" / "grid.py"
    settings = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert result_of(start(DECODE, tmp_path, **settings)) == [[3.0, 5.0]]
    assert result_of(start(DECODE, tmp_path, **settings)) == [[3.0, 5.0]]
    (kernel,) = (tmp_path / "cache").rglob("*.nbc")
    formula.write_text(
        formula.read_text().replace("(code - zero) * scale", "(code + zero) * scale")
    )
    assert result_of(start(DECODE, tmp_path, **settings)) == [[7.0, 9.0]]
    assert list((tmp_path / "cache").rglob("*.nbc")) == [kernel], "stale kernels pile up"


def test_scipy_is_whole_for_who_imports_it_later():
    code = "import json, sys, numpy as np, numba, numbacalib\n"
    code += "numbacalib.gptq_inverse_hessian(np.eye(3)), numbacalib.fisher_information(np.ones((2, 3)))\n"
    code += "alone = 'scipy.linalg' not in sys.modules\n"
    code += "solved = numba.njit(lambda a: np.linalg.inv(a) @ a)(np.diag([2.0, 4.0])).tolist()\n"
    code += "import scipy.linalg\n"
    code += "pointer = 'dgemm' in scipy.linalg.cython_blas.__pyx_capi__\n"
    code += "print(json.dumps([alone, solved, pointer, scipy.linalg.det(np.eye(2))]))"
    assert result_of(start(code)) == [True, [[1.0, 0.0], [0.0, 1.0]], True, 1.0]


def test_reductions_have_the_same_bits_at_any_number_of_threads():
    one, two = (result_of(start(INPUTS + REDUCTIONS, NUMBA_NUM_THREADS=n)) for n in "12")
    assert one == two


def test_one_thread_is_one_thread():
    limits = {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    assert result_of(start(INPUTS + EVERYTHING + THREADS, **limits)) == 1


def test_openmp_limit_holds_for_all():
    """OMP_NUM_THREADS alone limits BLAS and the kernels."""
    limits = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": None, "OPENBLAS_NUM_THREADS": None}
    assert result_of(start(INPUTS + EVERYTHING + THREADS, **limits)) == 1
