"""Runs that end in a chosen block, and what the runs after them have left to do."""

from __future__ import annotations

from quantizer.runs import run

from numbacalib.quantizer import blocks, collection

SHORT = ["--samples", "4", "--sequence-length", "32", "--group-size", "32"]
LAYERS = 4


def fail_in_block(monkeypatch, index, error):
    """Let the first layer of a block fail."""
    real = blocks.quantize_group

    def failing(job, block, *arguments):
        if block.name == f"model.layers.{index}":
            raise error
        return real(job, block, *arguments)

    monkeypatch.setattr(blocks, "quantize_group", failing)


def interrupted_at(monkeypatch, index, *command):
    """Run until a block is reached, where Ctrl-C ends it."""
    with monkeypatch.context() as patch:
        fail_in_block(patch, index, KeyboardInterrupt())
        assert run(*command) == 130


def quantized_layers(monkeypatch):
    """Names of the layers that are quantized from now on."""
    names = []
    real = blocks.quantize_group

    def noting(job, block, inputs, *arguments):
        names.extend(inputs)
        return real(job, block, inputs, *arguments)

    monkeypatch.setattr(blocks, "quantize_group", noting)
    return names


def collected_blocks(monkeypatch):
    """Names of the blocks whose statistics are collected from now on."""
    names = []
    real = collection.run_stages

    def noting(block, *arguments):
        names.append(block.name)
        return real(block, *arguments)

    monkeypatch.setattr(collection, "run_stages", noting)
    return names
