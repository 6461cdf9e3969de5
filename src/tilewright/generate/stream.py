"""Text pieces from a stream of token ids."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tilewright.tokenizers import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns ids into text as they come, and stops at stop strings.

    The pieces joined together are ``tokenizer.decode(ids, skip_special=skip_special)``. Bytes that
    do not yet make a character are held back, and so is text that could still become a stop string.
    Nothing of a stop string is returned. Of several stop strings the one counts that is complete
    first, so the result does not depend on how tokens cut the text.

    ``continuation``: the ids continue a text (a prompt, say), so a leading space is part of it and
    is kept, where `Tokenizer.decode` of the ids alone would drop it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: str | Sequence[str] = (),
        *,
        skip_special: bool = True,
        continuation: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if not all(self._stop):
            raise ValueError("a stop string is empty; it would end every text at once")
        self._skip_special = skip_special
        self._first = not continuation
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stop_string: str | None = None
        """The stop string that ended the text, or None."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; from then on every piece is empty."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """The text that is certain after this token, possibly empty."""
        if self.stopped or (self._skip_special and self._tokenizer.is_special(token_id)):
            return ""
        new = self._tokenizer.token_bytes(token_id, first=self._first)
        self._first = False
        return self._advance(self._decoder.decode(new), final=False)

    def finish(self) -> str:
        """The rest of the text: what was held back. An unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        return self._advance(self._decoder.decode(b"", final=True), final=True)

    def _advance(self, new: str, *, final: bool) -> str:
        text = self._held + new
        found = [(text.find(stop) + len(stop), stop) for stop in self._stop if stop in text]
        if found:
            # the first to be complete; of two that end together the longer, which starts earlier
            end, self.stop_string = min(found, key=lambda item: (item[0], -len(item[1])))
            self._held = ""
            return text[: end - len(self.stop_string)]
        keep = 0 if final else self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(len(text), max(map(len, self._stop), default=0)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
