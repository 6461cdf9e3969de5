"""Chat templates: from a list of messages to the prompt text that a chat model was trained on.

The template comes with the model (``Tokenizer.chat_template``) and is a program in Jinja's
language, written by a stranger: it runs in Jinja's sandbox, which can neither reach Python objects'
internals nor change what it is given. The environment is that of Hugging Face transformers, for
which these templates are written.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.errors import FormatError, TilewrightError, UnsupportedError

__all__ = ["render_chat"]


class _Rejected(Exception):
    """The template called ``raise_exception``."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    **extra: Any,
) -> str:
    """The prompt for ``messages`` (each with ``role`` and ``content``).

    ``add_generation_prompt`` ends the prompt with the opening of the assistant's turn. ``extra``
    (``tools``, ``documents``, ...) is visible to the template as variables. The result usually
    holds the begin token's text already: encode it with ``add_special=False``.

    Raises `UnsupportedError` if Jinja is not installed, `FormatError` if the template is not valid,
    `TilewrightError` if it refuses the messages or fails on them. No other template is ever used
    instead.
    """
    try:
        import jinja2
        from jinja2.exceptions import SecurityError
    except ImportError as error:
        raise UnsupportedError(
            "chat templates need the package jinja2: pip install 'tilewright[chat]'"
        ) from error
    environment = _environment()
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise FormatError(
            f"the chat template is not valid Jinja: {error.message} (line {error.lineno})"
        ) from error
    variables = {
        "messages": messages,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
        **extra,
    }
    try:
        return compiled.render(variables)
    except _Rejected as error:
        raise TilewrightError(f"the chat template refuses these messages: {error}") from error
    except SecurityError as error:
        raise FormatError(
            f"the chat template tries something that is not allowed: {error}"
        ) from error
    except Exception as error:  # a template is a program and can fail in any way
        raise TilewrightError(
            f"the chat template failed on these messages: {type(error).__name__}: {error}"
        ) from error


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}...{% endgeneration %}`` marks the assistant's text for training;
        for the prompt it is just its body."""

        tags = {"generation"}  # noqa: RUF012 (Jinja declares it as a plain set)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: object) -> None:
        raise _Rejected(str(message))

    def strftime_now(pattern: str) -> str:
        return datetime.datetime.now().strftime(pattern)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes for HTML, which is not what a model was trained on
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
