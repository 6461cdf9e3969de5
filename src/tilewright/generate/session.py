"""A conversation: one sequence in the cache that grows turn by turn."""

from __future__ import annotations

from typing import Any

from tilewright.generate.chat import render_chat
from tilewright.generate.model import Generation, Model
from tilewright.generate.sampling import SamplingParams

__all__ = ["Conversation"]


class Conversation:
    """Prompts and answers that share one context.

    With a chat template in the model, each turn is rendered by it; without one the model just
    continues the text, turn after turn. Tokens that are in the cache already are not fed again.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._sequence = model.engine.open()
        self._cached: list[int] = []  # ids in the cache, in order
        self._messages: list[dict[str, str]] = []
        self._last: Generation | None = None

    def say(self, text: str, **settings: Any) -> Generation:
        """The answer to ``text``; ``settings`` as for :meth:`Model.generate`.

        Raises :class:`ContextLengthError` when it does not fit, and then takes no part of it.
        """
        self._absorb()
        tokenizer, messages = self.model.tokenizer, self._messages
        if tokenizer.chat_template is None:
            ids = [*self._cached, *tokenizer.encode(text, add_special=not self._cached)]
        else:
            messages = [*messages, {"role": "user", "content": text}]
            rendered = render_chat(
                tokenizer.chat_template,
                messages,
                _text(tokenizer, tokenizer.bos_id),
                _text(tokenizer, tokenizer.eos_id),
            )
            ids = tokenizer.encode(rendered, add_special=False)
        shared = 0
        limit = min(len(ids) - 1, len(self._cached), self._sequence.length)
        while shared < limit and ids[shared] == self._cached[shared]:
            shared += 1
        shared = self.model.engine.truncate(self._sequence, shared)
        self._cached = self._cached[:shared]
        stop = settings.pop("stop", ())
        limit_tokens = settings.pop("max_tokens", None)
        generation = Generation(
            self.model,
            ids[shared:],
            limit_tokens,
            SamplingParams(**settings),
            (stop,) if isinstance(stop, str) else tuple(stop),
            self._sequence,
        )
        self._cached, self._messages, self._last = ids, messages, generation
        return generation

    def close(self) -> None:
        """Give the cache back."""
        self.model.engine.close(self._sequence)

    def _absorb(self) -> None:
        """Take the last answer into the history."""
        if self._last is None:
            return
        self._cached = (self._cached + self._last.ids)[: self._sequence.length]
        if self._messages:
            answer = self.model.tokenizer.decode(self._last.ids, skip_special=True)
            self._messages.append({"role": "assistant", "content": answer})
        self._last = None


def _text(tokenizer: Any, token_id: int | None) -> str:
    return "" if token_id is None else str(tokenizer.token_text(token_id))
