"""Results of ``numbacalib demo`` on the CPU, as a CSV.

    python benchmarks/demo.py [--docs]

Writes ``results/demo-<machine>.csv``. Needs the extra `benchmarks`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile

from harness import describe_machine, write_csv
from report import parser, report
from tables import DemoRow

PACKAGES = ("numba", "numpy", "scipy")
FACTS = re.compile(
    r"calibrated on (?P<calibration>.*\)), (?P<evaluation>.*\)); (?P<duration>.* s in all)"
)


def run_demo() -> str:
    """Return the demo's output, which is also printed line by line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "numbacalib.cli", "demo", "--device", "cpu"]
        command += ["--output", f"{folder}/model"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = []
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
    if process.returncode:
        raise SystemExit(process.returncode)
    return "".join(lines)


def rows_of(printed: str) -> list[DemoRow]:
    """Parse the printed table; its first two lines are the header."""
    lines = [line.strip("| \n") for line in printed.splitlines() if line.startswith("|")]
    rows = []
    for line in lines[2:]:
        model, *figures = (cell.strip() for cell in line.split("|"))
        rows.append(DemoRow(model, *(float("nan" if cell == "-" else cell) for cell in figures)))
    return rows


def main() -> int:
    """Run the demo and write the CSV."""
    options = parser(__doc__).parse_args()
    printed = run_demo()
    facts = FACTS.search(printed)
    if facts is None:
        raise ValueError(f"the demo: expected a line that fits {FACTS.pattern!r}")
    machine = describe_machine(*PACKAGES, **facts.groupdict())
    return report(write_csv("demo", machine, rows_of(printed)), docs=options.docs)


if __name__ == "__main__":
    sys.exit(main())
