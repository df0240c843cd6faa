"""Fixtures of the tests that need a GPU: `pytest --backend cuda` collects this folder, nothing else does.

References are float64 sums of torch on the same GPU: at these sizes `tests/naive.py` would take hours,
and the tests that run on every backend hold the kernels to it at small ones.
"""

import pytest
import torch

from numbacalib.ops.columns import gpu as column_kernels
from numbacalib.runtime import blas_gpu, device

collect_ignore = [] if torch.cuda.device_count() > 1 else ["test_two_gpus.py"]


@pytest.fixture(params=["chosen", "other", "portable"])
def form(request, monkeypatch):
    """Kernels as the GPU's capability and the installed libraries choose them, those of another, or the
    portable ones.
    """
    if request.param != "chosen":
        monkeypatch.setattr(device, "capability", lambda _: (0, 0))
    if request.param == "portable":
        monkeypatch.setattr(column_kernels, "_has_vectors", lambda _: False)
        monkeypatch.setattr(blas_gpu, "has_libraries", lambda: False)
    return request.param


@pytest.fixture
def generator():
    return torch.Generator("cuda").manual_seed(1)


@pytest.fixture(autouse=True)
def _give_memory_back():
    yield
    torch.cuda.empty_cache()
