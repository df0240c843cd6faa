"""The documents: links resolve, code runs, tables are what their CSVs say, options and names exist."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from models.tiny import TEXT, write_tiny_checkpoint

from numbacalib import cli
from numbacalib.models.architectures import ARCHITECTURES
from numbacalib.models.wrappers import WRAPPERS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"--[a-z][a-z-]+")
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")
PUBLIC = (
    "numbacalib",
    "numbacalib.methods",
    "numbacalib.models",
    "numbacalib.quantizer",
    "numbacalib.statistics",
)


ELSEWHERE = {"quantize_onnx"}
"""Public functions whose examples run in tests/clients, where the packages are that they need."""


def name_of(path):
    return str(path.relative_to(ROOT))


def code_blocks(document, language):
    text = document.read_text(encoding="utf-8")
    return [code for kind, code in FENCED.findall(text) if kind == language]


def anchors(document):
    """Anchors of a document's headings, as GitHub and GitLab make them."""
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_resolve(document):
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    for path, anchor in LINK.findall(text):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document):
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    for path in re.findall(r"`([\w.*-]+/[\w./*-]+)`", text):
        found = [*ROOT.glob(path), *(ROOT / "numbacalib").glob(path)]
        assert found or path.startswith(("smollm2", "HuggingFaceTB/")), path


def test_links_of_the_readme_lead_to_every_document():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / path).resolve() for path, _ in LINK.findall(text) if path}
    assert {document for document in DOCUMENTS if document.name != "README.md"} <= linked


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_of_documents_runs(document):
    scope: dict = {}
    for code in code_blocks(document, "python"):
        exec(compile(code, name_of(document), "exec"), scope)


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_commands_of_the_readme_are_one_line(name):
    """Each sets up all that it needs, so that it can be pasted alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)```", text, re.DOTALL)
    assert len(command.splitlines()) == 1
    assert command.startswith("python3 -m venv ")


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_examples_run(example, tmp_path):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 40
    process = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout


def test_tables_are_what_their_results_say(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("report")
    assert report.check() == 0, capsys.readouterr().out
    tables = [region for file in DOCUMENTS for region in report.REGION.finditer(file.read_text())]
    assert {region["file"] for region in tables} == {
        file.name for file in report.RESULTS.glob("*.csv")
    }


def test_a_changed_figure_is_found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("report")
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    region = next(report.REGION.finditer(text))
    figure = re.findall(r"\d+\.\d+", region["body"])[-1]
    changed = text.replace(figure, figure + "1")
    assert report.made_again(changed) == text != changed


def test_the_table_of_the_demo_is_read_back(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    demo, tables = importlib.import_module("demo"), importlib.import_module("tables")
    (file,) = (ROOT / "benchmarks" / "results").glob("demo-*.csv")
    table = tables.markdown(file).split("\n\n")[1]
    rows = demo.rows_of(f"original: model.gguf\n{table}\nthe checkpoint is in model\n")
    assert tables.demo_body(rows) == table
    assert len(rows) == 5


def test_shares_are_of_the_first_method_and_marked_where_they_miss_the_aim(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("quality_tables")

    def rows(bits, method, *divergences):
        return [
            tables.QualityRow("small", bits, False, method, text, 0, 0, kl, 0, 1, 4, 1)
            for text, kl in zip(("messages", "reference"), divergences, strict=True)
        ]

    at_3, at_2 = (
        [*rows(bits, "GPTQ", 0.4, 0.2), *rows(bits, "GPTQ, default", 0.1, 0.15)] for bits in (3, 2)
    )
    *_, line_3, line_2 = tables.peers_body(at_3 + at_2).splitlines()
    assert "| 0.4000 / 0.2000 | 0.25 / 0.75 (short) |" in line_3
    assert "0.25 / 0.75 |" in line_2
    changed = rows(2, "default, no passes", 0.2, 0.15)
    *_, line = tables.options_body(at_3 + at_2 + changed).splitlines()
    assert line.endswith("| 0.1000 / 0.1500 |        2.00 / 1.00 |")
    assert len(tables.options_body(at_3).splitlines()) == 2  # no line without a change


def help_of(*arguments):
    """What the command line prints about itself."""
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit):
        cli.main([*arguments, "--help"])
    return printed.getvalue()


@cache
def commands():
    return re.findall(r"^    ([a-z][a-z-]*) ", help_of(), re.MULTILINE)


@cache
def options():
    """Every long option of the command line."""
    return {option for command in commands() for option in OPTION.findall(help_of(command))} - {
        "--help"
    }


def architectures():
    """The table of architectures, made from their descriptions."""
    within = {}
    for wrapper, decoder in WRAPPERS.items():
        within.setdefault(decoder, []).append(f"`{wrapper}`")
    lines = ["| models | `model_type` | decoder of | has |", "|:-|:-|:-|:-|"]
    for name, own in sorted(ARCHITECTURES.items(), key=lambda item: item[1].title.lower()):
        wrappers = ", ".join(within.get(name, []))
        lines.append(f"| {own.title} | `{name}` | {wrappers} | {', '.join(traits(own))} |")
    return "\n".join(lines)


def traits(own):
    """What a description says that llama's does not."""
    if own.norm == "layer":
        yield "LayerNorm"
    if own.norm_offset:
        yield "(1 + w) norms"
    if "attention_output" in own.norms:
        yield "four norms" if "attention" in own.norms else "norms after"
    if own.parallel:
        yield "parallel MLP"
    if own.interleaved:
        yield "interleaved rotary"
    if own.local_rope_key:
        yield "two rotary bases"
    if "latent" in own.linears:
        yield "latent attention"
    if own.delta is not None:
        yield "gated delta net"
    if own.convolution is not None:
        yield "short convolutions"
    if own.state_space is not None:
        yield "Mamba 2"
    if own.selector:
        yield "sparse attention"
    if {"query_gate", "attention_gate"} & set(own.linears) or own.head_gate:
        yield "gated attention"
    if own.sinks:
        yield "sinks"
    if len(set(own.linears.values())) < len(own.linears) or "query_key_value" in own.linears:
        yield "fused layers"
    if "gate" not in own.linears:
        yield "ungated MLP"
    if own.experts is not None:
        yield "experts"


def test_architectures_are_those_described():
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| models .*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)
    assert table == architectures(), f"replace the table by\n{architectures()}"


def test_the_readme_tells_of_as_many_architectures_as_are_described():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.search(r"an id of the hub: (.*?) and others, (\d+) architectures", text, re.DOTALL)
    within = re.search(r"(\d+) multimodal", text)
    assert (int(named[2]), int(within[1])) == (len(ARCHITECTURES), len(WRAPPERS))
    titles = [own.title for own in ARCHITECTURES.values()]
    for family in re.split(r",\s+", named[1]):
        assert any(title.startswith(family) for title in titles), family


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_options_in_documents_exist(document):
    text = document.read_text(encoding="utf-8")
    lines = re.findall(r"^numbacalib .*$|\.venv/bin/numbacalib .*$", text, re.MULTILINE)
    if document.name == "methods.md":
        lines += re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    assert set(OPTION.findall(" ".join(lines))) <= options()


def test_every_option_is_in_the_table():
    assert options() <= set(OPTION.findall(METHODS))


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands()
    named = set(re.findall(r"`(\S+?)`", text)) | set(re.findall(r"numbacalib (\S+?)[`\s]", text))
    assert set(commands()) <= named


@pytest.mark.parametrize("module", [name for name in PUBLIC if name != "numbacalib.models"])
def test_public_names_are_documented(module):
    """Operations in the README, what calibrates and quantizes in the tables of methods."""
    where = METHODS + (ROOT / "README.md").read_text(encoding="utf-8")
    names = importlib.import_module(module).__all__
    assert not [name for name in names if not re.search(rf"\b{name}\b", where)]


@pytest.mark.parametrize("module", PUBLIC)
def test_examples_of_docstrings_run(module, tmp_path, monkeypatch):
    """Those of the module, and of every public name with its members.

    Each runs in a folder that has a model and a text.
    """
    room = importlib.import_module(module)
    finder = doctest.DocTestFinder(recurse=False)
    objects = {module: room}
    for name in (each for each in room.__all__ if each not in ELSEWHERE):
        thing = getattr(room, name)
        objects[name] = thing
        if isinstance(thing, type):
            members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
            objects |= {f"{name}.{key}": value for key, value in members.items()}
    runner = doctest.DocTestRunner()
    for name, thing in objects.items():
        for example in finder.find(thing, name, module=False):
            folder = tmp_path / example.name
            write_tiny_checkpoint(folder / "model")
            (folder / "text.txt").write_text(TEXT * 20, encoding="utf-8")
            monkeypatch.chdir(folder)
            runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
