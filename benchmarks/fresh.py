"""Figures that only a fresh process can give: import, first calls, peak memory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from harness import Row, figure

CALLS = {
    "awq_channel_scores": "numbacalib.awq_channel_scores(x, w)",
    "fisher_information": "numbacalib.fisher_information(x)",
    "gptq_hessian_update": "numbacalib.gptq_hessian_update(h, x)",
    "gptq_inverse_hessian": "numbacalib.gptq_inverse_hessian(h)",
    "gptq_quantize_column": "numbacalib.gptq_quantize_column(w, h, 4, 16, False)",
    "gptq of a layer": "gptq(w, h, bits=4, group_size=16)",
}

COLD = {
    "awq_channel_scores": 4.0,
    "fisher_information": 3.0,
    "gptq_inverse_hessian": 5.0,
    "gptq of a layer": 12.0,
}
"""Most seconds of CPU time that a first call may take to compile."""

FIRST_CALL = """
import json, time
import numpy as np
x = np.ones((256, 256), np.float32)
w = np.ones((256, 256), np.float32)
h = np.eye(256, dtype=np.float32)
start = time.perf_counter()
import numbacalib
imported = time.perf_counter()
from numbacalib.methods import gptq
begun, used = time.perf_counter(), time.process_time()
{call}
print(json.dumps([imported - start, time.perf_counter() - begun, time.process_time() - used]))
"""

ALONE = "numba alone"
"""A kernel that adds 1: the cost of any cached Numba kernel."""

ALONE_MODULE = """
from numba import njit, prange

@njit(parallel=True, cache=True)
def add_one(x):
    for i in prange(len(x)):
        x[i] += 1
"""

ALONE_CALL = """
import json, sys, time
import numpy as np
sys.path.append({folder!r})
x = np.ones(64, np.float32)
start = time.perf_counter()
import numba
imported = time.perf_counter()
from alone import add_one
begun, used = time.perf_counter(), time.process_time()
add_one(x)
print(json.dumps([imported - start, time.perf_counter() - begun, time.process_time() - used]))
"""

MEMORY = """
import json
from pathlib import Path
import ml_dtypes
import numpy as np
import numbacalib
from numbacalib.methods import gptq

def level(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024

rng = np.random.default_rng(0)
K, B = {K}, {B}
h = np.eye(K, dtype=np.float32)
w = rng.standard_normal((K, K), np.float32)
x = rng.standard_normal((B, K), np.float32).astype({dtype})
call = lambda: {call}
call()
# The second call's peak over what was there before it: libraries and BLAS buffers stay out.
Path("/proc/self/clear_refs").write_text("5")
before = level("VmRSS")
result = call()
print(json.dumps(level("VmHWM") - before))
"""


def run(code: str, cache: str) -> Any:
    """Run `code` in a fresh Python with its own kernel cache; return its printed JSON."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    # Bytecode is cached, since pip also compiles it when it installs a package.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    # Freed arrays go back to the system at once, so that a peak counts only what is in use.
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a fresh process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def startup_rows(repeats: int) -> list[Row]:
    """Import time, and each call's first time with a cold cache (compiling) and with a warm one.

    Then the same for a kernel that is not ours: the least time of any Numba kernel.
    """
    rows, imports = [], []
    for name, call in CALLS.items():
        print(f"first call: {name}", flush=True)
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = _first_calls(FIRST_CALL.format(call=call), cache, repeats)
        imports += [seconds for seconds, *_ in warm]
        rows += _call_rows(name, cold, warm, COLD.get(name), 0.5)
    print(f"first call: {ALONE}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        Path(cache, "alone.py").write_text(ALONE_MODULE)
        cold, warm = _first_calls(ALONE_CALL.format(folder=cache), cache, repeats)
    theirs = [
        figure("import", ALONE, statistics.median(seconds for seconds, *_ in warm), "s"),
        *_call_rows(ALONE, cold, warm),
    ]
    ours = [figure("import", "numbacalib", statistics.median(imports), "s", limit=0.6), *rows]
    return ours + [row._replace(who="numba") for row in theirs]


class _Start(NamedTuple):
    """Seconds that a fresh process took."""

    imported: float
    called: float
    used: float
    """CPU time of the call, on all threads."""


def _first_calls(code: str, cache: str, repeats: int) -> tuple[_Start, list[_Start]]:
    """Return a first call that compiles, then repeats that do not."""
    cold, *warm = [_Start(*run(code, cache)) for _ in range(repeats + 1)]
    return cold, warm


def _call_rows(
    name: str,
    cold: _Start,
    warm: list[_Start],
    most: float | None = None,
    limit: float | None = None,
) -> list[Row]:
    median = statistics.median(start.called for start in warm)
    return [
        figure("first call, cold cache", name, cold.called, "s"),
        figure("first call, cold cache, processors", name, cold.used, "s", limit=most),
        figure("first call, warm cache", name, median, "s", limit=limit),
    ]


def memory_rows(K: int, B: int) -> list[Row]:
    """Peak memory of a call beyond its inputs, with the limits of the goals."""
    update, layer = "numbacalib.gptq_hessian_update(h, x)", "gptq(w, h, bits=4, group_size=128)"
    square = 4 * K * K / 2**20
    with tempfile.TemporaryDirectory() as cache:

        def peak(call: str, rows: int, dtype: str) -> float:
            print(f"memory: {call} {rows} x {K} {dtype}", flush=True)
            return run(MEMORY.format(K=K, B=rows, call=call, dtype=dtype), cache) / 2**20

        whole = peak(layer, 1, "np.float32")
        single = peak(update, B, "np.float32")
        half = peak(update, B, "ml_dtypes.bfloat16")
        longer = peak(update, 4 * B, "ml_dtypes.bfloat16")

    # 5 % are allowed beside the matrices: a row of flags, the interpreter's own objects.
    one: dict[str, Any] = {"limit": square, "against": "one K x K", "slack": 1.05}
    same: dict[str, Any] = {"limit": half, "against": f"that of B={B}", "slack": 1.05}
    both: dict[str, Any] = {"limit": 4 * square, "against": "2 (M K + K²)"}
    half_type: dict[str, Any] = {"dtype": "bfloat16"}
    update = "peak memory, Hessian update"
    return [
        figure("peak memory, GPTQ of a layer", f"{K} x {K}", whole, "MiB", **both),
        figure(update, f"B={B} K={K}", single, "MiB", **one),
        figure(update, f"B={B} K={K}", half, "MiB", **half_type),
        figure(update, f"B={4 * B} K={K}", longer, "MiB", **half_type, **same),
    ]
