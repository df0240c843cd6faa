"""Choice of the checkpoint reader for a path."""

from __future__ import annotations

from pathlib import Path

from numbacalib.models.checkpoint import Checkpoint
from numbacalib.models.hub import local_path
from numbacalib.models.input_files import InputFiles
from numbacalib.models.tensor_names import check_names
from numbacalib.runtime.extras import extra

__all__ = ["open_checkpoint"]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face directory or a GGUF file.

    Parameters
    ----------
    path : str or Path
        A directory with ``config.json`` and ``model.safetensors`` or its index, a GGUF file of any name,
        or, if neither exists, an id on the Hugging Face hub, ``owner/name`` or ``owner/name@revision``.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If it is neither of the two, is damaged or truncated, or has an architecture that is not
        supported. The message is one line that names the file.

    Examples
    --------
    >>> from numbacalib.models import open_checkpoint
    >>> checkpoint = open_checkpoint("model")
    >>> checkpoint.info("model.layers.0.mlp.down_proj.weight")
    TensorInfo(shape=(64, 96), dtype=dtype('float32'))
    """
    with extra("models"):
        from numbacalib.models.gguf import GGUFCheckpoint
        from numbacalib.models.gguf_file import is_gguf
        from numbacalib.models.huggingface import HuggingFaceCheckpoint

    path = local_path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    if path.is_dir():
        return HuggingFaceCheckpoint(path)
    files = InputFiles()
    files.watch(path)
    if not is_gguf(path):
        raise ValueError(f"{path}: expected a directory with config.json, or a .gguf file")
    checkpoint = GGUFCheckpoint(path)
    checkpoint.files = files
    try:
        # tensors that the configuration does not describe are an error now, not later
        check_names(checkpoint.config, checkpoint.names())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return checkpoint
