"""What a model expects next: the likeliest tokens after a text, with their probabilities.

python examples/next_token.py [TEXT] [MODEL.gguf]
"""

from __future__ import annotations

import sys

import numpy as np

import tilewright


def main(arguments: list[str]) -> None:
    """Logits after the last token, turned into probabilities."""
    text = arguments[0] if arguments else "Prince Andrew looked at"
    model = tilewright.load(arguments[1] if len(arguments) > 1 else None)
    logits = model.logits(model.tokenizer.encode(text))[-1].astype(np.float64)  # (vocab,)
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    for token in np.argsort(-odds)[:10]:
        piece = model.tokenizer.token_bytes(token).decode("utf-8", "replace")
        print(f"{odds[token]:7.2%}  {text}|{piece}")


if __name__ == "__main__":
    main(sys.argv[1:])
