"""Texts from JSON lines and parquet tables, and chats through a checkpoint's template."""

from __future__ import annotations

import json

import pyarrow
import pytest
from models.tiny import TEXT, write_tiny_checkpoint
from pyarrow import parquet

from numbacalib.models import open_checkpoint
from numbacalib.quantizer.documents import BLOCK, read_documents
from numbacalib.quantizer.progress import Progress
from numbacalib.quantizer.text import read_sequences

CHATML = (
    "{% for message in messages %}\n"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Three — café."},
]
RENDERED = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\nThree — café.<|im_end|>\n"


@pytest.fixture
def model(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model")
    configure(model, chat_template=CHATML)
    return model


def configure(model, **entries):
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def text_of(file, model):
    with Progress(1) as progress:
        return "".join(read_documents(file, open_checkpoint(model), progress))


def write_lines(file, *records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def test_json_lines_of_text_and_chats(tmp_path, model):
    file = write_lines(tmp_path / "a.jsonl", {"text": "one\ntwo"}, {"messages": CHAT, "id": 3})
    assert text_of(file, model) == f"one\ntwo\n{RENDERED}"


class Steps:
    """A progress bar that counts its steps."""

    count = 0

    def step(self):
        self.count += 1

    def show(self, what):
        pass


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_each_block_of_a_file_is_a_step(tmp_path, model, kind):
    text, file, steps = "word " * (BLOCK // 16), tmp_path / f"a.{kind}", Steps()
    if kind == "txt":
        file.write_text(text * 10)
    elif kind == "jsonl":
        file.write_text(10 * (json.dumps({"text": text}) + "\n"))
    else:
        table = pyarrow.table({"text": [text + str(i) for i in range(10)]})
        parquet.write_table(table, file, compression="none", use_dictionary=False)
    assert file.stat().st_size // BLOCK >= 3
    for _ in read_documents(file, open_checkpoint(model), steps):
        pass
    assert steps.count - file.stat().st_size // BLOCK in (0, 1)


@pytest.mark.parametrize("column", ["text", "messages"])
def test_parquet_tables(tmp_path, model, column):
    values = {"text": ["one", "two"], "messages": [CHAT, CHAT]}[column]
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], column: values}), file)
    assert text_of(file, model) == {"text": "one\ntwo\n", "messages": RENDERED * 2}[column]


def test_the_template_may_be_a_file_or_one_of_several(tmp_path, model):
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT})
    configure(
        model,
        chat_template=[{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}],
    )
    assert text_of(file, model) == RENDERED
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    # every sequence begins with that token anyway
    assert text_of(file, model) == "How many?"


def test_chats_calibrate(tmp_path, model):
    file = write_lines(tmp_path / "a.jsonl", *[{"messages": CHAT}, {"text": TEXT}] * 20)
    assert read_sequences(open_checkpoint(model), [file], 32, 4).shape == (4, 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "a.jsonl: line 2: expected text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', "a.jsonl: line 3: expected JSON"),
        ("a.jsonl", b"\xff\n", "a.jsonl: line 1: expected JSON"),
        ("a.jsonl", b"3\n", "a.jsonl: line 1: expected text"),
        ("a.parquet", b"PAR1", "a.parquet: expected a parquet file"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path, model, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text_of(tmp_path / name, model)


def test_a_table_without_text_is_refused(tmp_path, model):
    parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a column text or messages"):
        text_of(tmp_path / "a.parquet", model)


def test_a_model_without_a_template_says_so(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "model")
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT})
    with pytest.raises(ValueError, match="expected a chat template"):
        text_of(file, model)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "line 1: chat template: roles must alternate",
        ),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for %}", "chat template: "),
        ("{{ messages[0].absent.content }}", "line 1: chat template: "),
    ],
)
def test_templates_of_others_run_in_a_sandbox(tmp_path, model, template, message):
    configure(model, chat_template=template)
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT})
    with pytest.raises(ValueError, match=message):
        text_of(file, model)


@pytest.mark.parametrize(
    ("package", "extra", "name"),
    [("jinja2", "chat", "a.jsonl"), ("pyarrow", "parquet", "a.parquet")],
)
def test_missing_packages_are_named(tmp_path, model, monkeypatch, package, extra, name):
    import sys

    write_lines(tmp_path / name, {"messages": CHAT})
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'numbacalib\[{extra}\]'"):
        text_of(tmp_path / name, model)
