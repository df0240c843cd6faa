"""Every reader on damaged files: one line that names the file, within limits of memory and time.

The environment variable ``NUMBACALIB_FUZZ_EXAMPLES`` sets the number of files for each reader: 150 by
default, a few seconds for all; 1500 take under three minutes on two cores. ``NUMBACALIB_FUZZ_SEED`` is
the first example's number, 0 by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("NUMBACALIB_FUZZ_EXAMPLES", "150"))
SEED = int(os.environ.get("NUMBACALIB_FUZZ_SEED", "0"))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    command = [sys.executable, Path(__file__).with_name("child.py"), name, str(SEED), str(EXAMPLES)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONWARNINGS": "error",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    result = subprocess.run(
        [*command, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    example = (tmp_path / "example").read_text() if (tmp_path / "example").exists() else "none"
    report = f"last example {example}\n{result.stdout}{result.stderr[-2000:]}"
    assert result.returncode == 0, report
