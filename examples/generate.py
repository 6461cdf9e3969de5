"""Text from a model, piece by piece, and how fast it came.

    python examples/generate.py [MODEL.gguf] [PROMPT]

Without a model: the small one that ships with tilewright.
"""

from __future__ import annotations

import sys

import tilewright


def main(arguments: list[str]) -> None:
    """Load, generate, report."""
    path = arguments[0] if arguments else None
    prompt = arguments[1] if len(arguments) > 1 else "The old general"
    model = tilewright.load(path)
    print(model.config.summary(), file=sys.stderr)

    run = model.generate(prompt, max_tokens=60, temperature=0.8, top_p=0.95, seed=7)
    print(prompt, end="")
    for piece in run:
        print(piece, end="", flush=True)
    print()

    t = run.timings
    print(f"[{run.reason}] {t.tokens / max(t.seconds, 1e-9):.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
