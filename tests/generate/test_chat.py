"""Chat templates."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tilewright.errors import FormatError, TilewrightError, UnsupportedError
from tilewright.generate.chat import render_chat

pytest.importorskip("jinja2")

MESSAGES: list[Mapping[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße <b>"},
]
CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def test_chatml() -> None:
    wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße <b><|im_end|>\n"
    assert render_chat(CHATML, MESSAGES, add_generation_prompt=False) == wanted
    assert render_chat(CHATML, MESSAGES) == wanted + "<|im_start|>assistant\n"


def test_phi3_template_of_a_real_file(assets: Path) -> None:
    from tilewright.tokenizers import from_gguf

    tokenizer = from_gguf(assets / "gguf-vocab" / "ggml-vocab-phi-3.gguf")
    assert tokenizer.chat_template is not None
    text = render_chat(tokenizer.chat_template, MESSAGES[1:], bos_token="<s>")
    assert text == "<s><|user|>\nGrüße <b><|end|>\n<|assistant|>\n"
    ids = tokenizer.encode(text, add_special=False)
    assert [tokenizer.token_text(i) for i in ids[:2]] == ["<s>", "<|user|>"]
    assert ids[0] == tokenizer.bos_id


def test_variables_and_helpers() -> None:
    assert render_chat("{{ bos_token }}|{{ eos_token }}", [], "<s>", "</s>") == "<s>|</s>"
    assert render_chat("{{ tools[0].name }}", [], tools=[{"name": "add"}]) == "add"
    # JSON as the model saw it in training: no HTML escapes, no \\u escapes, order kept
    tools = {"b": "<ü>", "a": [1]}
    assert render_chat("{{ t | tojson }}", [], t=tools) == '{"b": "<ü>", "a": [1]}'
    assert render_chat("{{ t | tojson(indent=1) }}", [], t=[1]) == "[\n 1\n]"
    year = str(datetime.datetime.now().year)
    assert render_chat("{{ strftime_now('%Y') }}", []) in (year, str(int(year) + 1))


def test_white_space_control_and_loop_controls() -> None:
    template = "{% for m in messages %}\n  {% if loop.first %}\n{% continue %}\n  {% endif %}\n"
    template += "{{ m.role }}\n  {% break %}\n{% endfor %}\n"
    assert render_chat(template, [*MESSAGES, *MESSAGES]) == "user\n"


def test_generation_blocks_are_their_body() -> None:
    template = "a{% generation %}{{ messages[1].role }}{% endgeneration %}b"
    assert render_chat(template, MESSAGES) == "auserb"


def test_a_refusal_is_passed_on() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TilewrightError, match="refuses these messages: roles must alternate"):
        render_chat(template, MESSAGES)


@pytest.mark.parametrize("template", ["{% for %}", "{{ 'a }}", "{% nonsense %}", "{% if x %}"])
def test_invalid_templates(template: str) -> None:
    with pytest.raises(FormatError, match=r"not valid Jinja: .* \(line 1\)"):
        render_chat(template, MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(template: str) -> None:
    messages = list(MESSAGES)
    with pytest.raises(FormatError, match="not allowed"):
        render_chat(template, messages)
    assert messages == MESSAGES


def test_failures_inside_the_template() -> None:
    with pytest.raises(TilewrightError, match="failed on these messages: UndefinedError"):
        render_chat("{{ messages[9].content.upper() }}", MESSAGES)
    with pytest.raises(TilewrightError, match="failed on these messages: ZeroDivisionError"):
        render_chat("{{ 1 // 0 }}", MESSAGES)


def test_jinja_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'tilewright\[chat\]'"):
        render_chat(CHATML, MESSAGES)
