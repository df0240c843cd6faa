"""Kernels compiled by processes that have no device: they are those that a run launches."""

import json
import os
import subprocess
import sys

from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib.models import open_place
from numbacalib.quantizer import Settings, ahead
from numbacalib.runtime.rehearsal import facts_of_device

SETTINGS = Settings(bits=4, group_size=32, symmetric=True, samples=4, sequence_length=32)
PROGRAM = """
import json, sys
from numbacalib.quantizer import Settings, quantize
from numbacalib.runtime import cubins

function, compiled = cubins.function, cubins.compiled
needed, missing = [], []

def needs(kernel, *arguments):
    needed.append(kernel.__name__)
    return function(kernel, *arguments)

def compiles(kernel, *arguments):
    missing.append(kernel.__name__)
    return compiled(kernel, *arguments)

cubins.function, cubins.compiled = needs, compiles
quantize(sys.argv[1], sys.argv[2], text=[sys.argv[3]], device="cuda", bits=4, group_size=32,
         symmetric=True, samples=4, sequence_length=32)
print(json.dumps([needed, missing]))
"""


def test_a_run_compiles_little_itself(tmp_path, monkeypatch):
    model = write_tiny_checkpoint(tmp_path / "model", dtype="bfloat16")
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    place, settings = open_place("cuda"), SETTINGS.settled(text=True, experts=False)
    order = ahead._Order(str(model), settings, place, facts_of_device(), first=True)
    processes = [ahead._started() for _ in range(6)]
    for process in processes:
        ahead._send(process, order)
    assert [process.wait(timeout=300) for process in processes] == [0] * 6
    # the run starts no processes of its own on so few processors
    processors = sorted(os.sched_getaffinity(0))[: ahead.LEAST_PROCESSORS - 1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(tmp_path / "out"), str(text)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, processors),
    )
    needed, missing = json.loads(done.stdout)
    assert len(needed) > 50
    assert len(missing) <= len(needed) // 10, missing
    assert not {"attend", "couple", "quantize", "search", "tiles"} & set(missing)
