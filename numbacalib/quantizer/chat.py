"""Chat template of a checkpoint: renders messages in the form that the model was trained on.

Templates are untrusted Jinja code: they are rendered in its sandbox (extra `chat`), with the variables and
functions that transformers provides (https://huggingface.co/docs/transformers/chat_templating).
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from numbacalib.models import Checkpoint
from numbacalib.runtime.extras import extra

_CONFIG, _FILE = "tokenizer_config.json", "chat_template.jinja"


class ChatTemplate:
    """Chat template read from a checkpoint.

    Raises
    ------
    ValueError
        If the checkpoint has none, or one that Jinja cannot parse.
    ModuleNotFoundError
        If Jinja2 is not installed.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        with extra("chat"):
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._error = TemplateError
        files = checkpoint.tokenizer_files()
        config = json.loads(files.get(_CONFIG, b"{}"))
        source = files[_FILE].decode() if _FILE in files else _default(config.get("chat_template"))
        if source is None:
            raise ValueError(
                f"{checkpoint.path}: expected a chat template ({_FILE}, or chat_template in {_CONFIG}), "
                "found none: messages cannot be rendered as text"
            )
        self._tokens = {name: _text(config.get(name)) for name in ("bos_token", "eos_token")}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"{checkpoint.path}: chat template: {error}") from None

    def render(self, messages: list[Any]) -> str:
        """Render messages as text, without the beginning-of-sequence token, which is added later.

        Raises
        ------
        ValueError
            If the template refuses them.
        """
        try:
            text = self._template.render(
                messages=messages, add_generation_prompt=False, tools=None, **self._tokens
            )
        except (self._error, TypeError, KeyError) as error:
            raise ValueError(f"chat template: {error}") from None
        return text.removeprefix(self._tokens["bos_token"])

    def _refuse(self, message: str) -> None:
        raise self._error(message)


def _default(template: Any) -> str | None:
    """Default template of a configuration, which may have several by name."""
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: Any) -> str:
    """A token of a configuration: a string, or an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
