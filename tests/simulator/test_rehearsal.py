"""What a whole block would launch, noted in a process that has no device: numba-cuda is all it takes."""

import json
import os
import subprocess
import sys

from models.tiny import write_tiny_checkpoint

PROGRAM = """
import json, sys
from numbacalib.models import Decoder, Place, open_checkpoint
from numbacalib.quantizer import Settings, ahead
from numbacalib.runtime.rehearsal import Facts, rehearse

launches = rehearse(Facts((9, 0), 132, 13000))
place = Place("cuda:0", batch_tokens=32768, score_rows=8192, held_bytes=1 << 30)
decoder = Decoder(open_checkpoint(sys.argv[1]), place=place)
block = decoder.block(0)
found = {}
for part in ahead._parts(Settings(target="propagated", own_text=0.25, sequence_length=16, group_size=8)):
    before = len(launches)
    part(decoder, block, Settings(sequence_length=16, group_size=8))
    found[part.__name__] = [noted.kernel.__name__ for noted in launches[before:]]
assert len({(noted.kernel, noted.kinds) for noted in launches}) == len(launches)
assert all(noted.types for noted in launches)
try:
    rehearse(Facts((9, 0), 132, 13000))
except RuntimeError as error:
    found["twice"] = str(error)
print(json.dumps(found))
"""


def test_every_part_of_a_run_is_noted_and_nothing_launched(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model", num_hidden_layers=1, dtype="bfloat16")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("twice") == "expected a process that has not used a device yet"
    assert all(found.values())
    noted = {name for names in found.values() for name in names}
    longest = {"attend", "couple", "quantize", "reduce_all", "search", "tiles"}
    assert longest <= noted
