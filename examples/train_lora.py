"""Fine-tune the model that ships inside by low-rank adapters, and merge them into a new file.

python examples/train_lora.py [MODEL.gguf]

The same, with all options: ``tilewright train lora`` and ``tilewright train merge``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import tilewright
from tilewright.generate.model import DEFAULT_MODEL
from tilewright.train.recipes.language import LanguageOptions
from tilewright.train.recipes.lora import merge, train_lora

TEXT = "The tile is square, the tile is small, and many tiles will make a wall.\n" * 80


def main(arguments: list[str]) -> None:
    """Train on a verse until the model knows it."""
    model = Path(arguments[0]) if arguments else DEFAULT_MODEL
    options = LanguageOptions(context=32, batch=4, steps=25, lr=5e-3, warmup=3, evaluate_every=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text(TEXT)
        _, losses = train_lora(
            model, [text], options, folder / "run", rank=8, targets=["attention"], quiet=True
        )
        print(f"loss {losses['loss']:.3f}")
        merge(model, folder / "run", folder / "merged.gguf")
        for path in (model, folder / "merged.gguf"):
            words = tilewright.load(path, context=64).generate("The tile is", 24, temperature=0)
            print(f"{path.name}: The tile is{''.join(words)}".strip().replace("\n", " / "))


if __name__ == "__main__":
    main(sys.argv[1:])
