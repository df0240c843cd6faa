"""Each op's twins agree: what its contract calls, both have, with the same arguments.

They are read, not imported: the GPU's stand on CUDA.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import numbacalib

PACKAGE = Path(numbacalib.__file__).parent
ROOMS = [
    folder
    for folder in [PACKAGE / "linalg", *sorted((PACKAGE / "ops").iterdir())]
    if (folder / "cpu.py").exists()
]


def parsed(path):
    return ast.parse(path.read_text(), str(path))


def functions(path):
    """Public functions of a module, with the names and the kinds of their arguments."""
    found = {}
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            found[node.name] = [
                [argument.arg for argument in kind]
                for kind in (arguments.posonlyargs, arguments.args, arguments.kwonlyargs)
            ]
    return found


def called(path):
    """Names that a contract calls of whichever twin its arrays take."""
    return {
        node.func.attr
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "kernels"
    }


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_twins_agree_in_names_and_arguments(room):
    cpu = functions(room / "cpu.py")
    wanted = called(room / "__init__.py")
    assert wanted <= set(cpu)
    if not (room / "gpu.py").exists():
        assert room.name in ("kmeans", "block_grids")  # found on the CPU
        return
    gpu = functions(room / "gpu.py")
    assert wanted <= set(gpu)
    shared = set(cpu) & set(gpu)
    assert {name: cpu[name] for name in shared} == {name: gpu[name] for name in shared}


def test_the_simulated_device_has_what_the_driver_has():
    """`runtime.device` takes the same names of both, functions with as many arguments of the same kinds."""
    (choice,) = [
        node for node in parsed(PACKAGE / "runtime/device.py").body if isinstance(node, ast.If)
    ]
    driver, simulated = map(taken_from, (choice.body, choice.orelse))
    assert driver == simulated


def taken_from(imports):
    """Names that are imported, with the number of arguments of each kind where they are functions."""
    found = {}
    for node in imports:
        own = functions(PACKAGE.parent / (node.module.replace(".", "/") + ".py"))
        for name in (alias.name for alias in node.names):
            found[name] = [len(kind) for kind in own.get(name, [])]
    return found


def test_one_module_asks_whether_kernels_are_simulated():
    asked = [path for path in PACKAGE.rglob("*.py") if "ENABLE_CUDASIM" in path.read_text()]
    assert asked == [PACKAGE / "runtime/device.py"]
    assert not [
        path
        for path in PACKAGE.rglob("*.py")
        if "SIMULATED" in path.read_text() and path not in asked
    ]


def test_every_kernel_of_a_contract_is_found_by_a_plain_import():
    """No module is named by a string: editors and type checkers follow the imports."""
    for path in PACKAGE.rglob("*.py"):
        assert "__import__(" not in path.read_text(), path
        if "import_module" in path.read_text():
            # compiled modules of SciPy's, and our rooms that are imported when they are named
            assert path in (PACKAGE / "runtime/scipy_routines.py", PACKAGE / "__init__.py"), path


ON_NUMPY = """
import sys
import numpy as np
import numbacalib
from numbacalib.methods import gptq, rtn
x = np.ones((8, 8), np.float32)
h = np.eye(8, dtype=np.float32)
numbacalib.awq_channel_scores(x, x)
numbacalib.fisher_information(x)
numbacalib.gptq_hessian_update(h, x)
gptq(x, h, bits=4, group_size=8)
rtn(x, bits=4, group_size=8)
print([name for name in sys.modules if name.split(".")[:2] in (["numba", "cuda"], ["cuda"], ["cupy"])])
"""


def test_cuda_is_not_imported_without_a_cuda_array():
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, "-c", ON_NUMPY],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.strip() == "[]"
