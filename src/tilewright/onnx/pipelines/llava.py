"""LLaVA-OneVision from its three graphs: a picture and a question in, text out.

The folder is that of an ONNX export of a transformers checkpoint: ``vision_encoder``,
``embed_tokens`` and ``decoder_model_merged`` (perhaps in ``onnx/``), ``tokenizer.json``,
``config.json``, ``preprocessor_config.json`` and a chat template. The picture is one tile of the
encoder's size; its features stand in the prompt where the image token is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tilewright.errors import FormatError, UnsupportedError
from tilewright.generate.chat import render_chat
from tilewright.generate.sampling import Sampler, SamplingParams
from tilewright.generate.stream import TextStream
from tilewright.onnx.pipelines.images import Preprocess, read_config
from tilewright.onnx.session import ValueSpec, load
from tilewright.tokenizers import Tokenizer, from_json

__all__ = ["LlavaOneVision"]

GRAPHS: Final = ("vision_encoder", "embed_tokens", "decoder_model_merged")
_DEFAULTS: Final = {"image_token_index": 151646, "eos_token_id": 151645}
_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}\n{{ c.text }}{% endif %}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class LlavaOneVision:
    """The three graphs, the tokenizer, and how pictures are prepared.

    Args:
        folder: see the module's documentation.
        threads: how many to use; default one per core.
        variant: ending of the graphs' names, such as ``_fp16``; default none, or the only one.

    Raises:
        FormatError: a file is missing or damaged.
        UnsupportedError: a graph has inputs that nothing is known about.
    """

    def __init__(
        self, folder: str | os.PathLike[str], threads: int | None = None, variant: str = ""
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise FormatError("is no folder", path=root)
        paths = [_graph(root, name, variant) for name in GRAPHS]
        self.tokenizer: Tokenizer = from_json(root / "tokenizer.json")
        self.config = _config(root)
        self.template = _template(root)
        self.steps = (
            read_config(root / "preprocessor_config.json")
            if (root / "preprocessor_config.json").is_file()
            else Preprocess(size=(384, 384), resample="bicubic", mean=(0.5,), std=(0.5,))
        )
        self.vision, self.embed, decoder = (load(p, threads=threads) for p in paths)
        self.decoder = decoder.stateful()
        for spec in self.decoder.inputs:
            self._known(spec)

    def answer(
        self,
        image: str | os.PathLike[str] | np.ndarray,
        prompt: str,
        max_tokens: int = 256,
        params: SamplingParams | None = None,
    ) -> Iterator[str]:
        """Text about a picture, piece by piece; the pieces joined are the whole.

        Args:
            image: a file, or uint8 pixels (height, width, 3).
            prompt: what is asked.
            max_tokens: at most so many.
            params: how tokens are chosen; default the likeliest.
        """
        stream = TextStream(self.tokenizer)
        for token in self.tokens(image, prompt, max_tokens, params):
            piece = stream.push(token)
            if piece:
                yield piece
        rest = stream.finish()
        if rest:
            yield rest

    def tokens(
        self,
        image: str | os.PathLike[str] | np.ndarray,
        prompt: str,
        max_tokens: int = 256,
        params: SamplingParams | None = None,
    ) -> Iterator[int]:
        """The ids of :meth:`answer`, without the one that ends it."""
        history = self.prompt_ids(prompt)
        rows = self.embeddings(history, self.features(image))
        ends = self._ends()
        sampler: Sampler | None = None
        self.decoder.reset()
        for _ in range(max_tokens):
            logits = self._step(rows)
            if sampler is None:
                sampler = Sampler(params or SamplingParams(temperature=0), len(logits))
            token = sampler.sample(logits, history)
            if token in ends:
                return
            yield token
            history.append(token)
            rows = self._embed([token])

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids of a question about one picture, image token included."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = render_chat(self.template, [{"role": "user", "content": content}])
        ids = self.tokenizer.encode(text, add_special=False)
        image = self.config["image_token_index"]
        if ids.count(image) != 1:
            raise FormatError(
                f"the prompt has the image token {image} {ids.count(image)} times, wants it once: "
                "is the chat template that of this model?"
            )
        return ids

    def features(self, image: str | os.PathLike[str] | np.ndarray) -> np.ndarray:
        """What the encoder sees in a picture: float32 (n, d)."""
        (spec,) = self.vision.inputs
        values = self.steps.to_fit(spec.shape, spec.dtype)(image)
        found = next(iter(self.vision.run({spec.name: values}).values()))
        return found.reshape(-1, found.shape[-1]).astype(np.float32)

    def embeddings(self, ids: list[int], features: np.ndarray) -> np.ndarray:
        """The decoder's input (1, n, d): embedded ids, the features in place of the image token."""
        at = ids.index(self.config["image_token_index"])
        rows = self._embed(ids)
        if rows.shape[-1] != features.shape[-1]:
            raise FormatError(
                f"the encoder gives {features.shape[-1]} features a patch, the decoder takes "
                f"{rows.shape[-1]}"
            )
        parts = [rows[:, :at], features[None].astype(rows.dtype), rows[:, at + 1 :]]
        return np.concatenate(parts, axis=1)

    def _embed(self, ids: list[int]) -> np.ndarray:
        (spec,) = self.embed.inputs
        values = np.array([ids], spec.dtype or np.int64)
        found: np.ndarray = next(iter(self.embed.run({spec.name: values}).values()))
        return found

    def _step(self, rows: np.ndarray) -> np.ndarray:
        """The logits after more rows (1, n, d)."""
        past, n = self.decoder.length, rows.shape[1]
        known: dict[str, Any] = {
            "inputs_embeds": rows,
            "attention_mask": np.ones((1, past + n), np.int64),
            "position_ids": np.arange(past, past + n)[None],
            "use_cache_branch": np.array([past > 0]),
            "num_logits_to_keep": np.array(1),
        }
        feeds = {s.name: known[s.name].astype(s.dtype) for s in self.decoder.inputs}
        logits: np.ndarray = self.decoder.run(feeds, ["logits"])["logits"]
        return logits[0, -1, : self.tokenizer.vocab_size].astype(np.float32)  # the rest is padding

    def _known(self, spec: ValueSpec) -> None:
        names = (
            "inputs_embeds", "attention_mask", "position_ids", "use_cache_branch",
            "num_logits_to_keep",
        )  # fmt: skip
        if spec.name not in names:
            raise UnsupportedError(
                f"the decoder wants {spec.name!r} ({spec}), known are the past and "
                f"{', '.join(names)}"
            )

    def _ends(self) -> frozenset[int]:
        ends = self.config["eos_token_id"]
        return frozenset(ends if isinstance(ends, list) else [ends]) | self.tokenizer.eos_ids


def _graph(root: Path, name: str, variant: str) -> Path:
    for folder in (root, root / "onnx"):
        exact = folder / f"{name}{variant}.onnx"
        if exact.is_file():
            return exact
    found = sorted(p for f in (root, root / "onnx") for p in f.glob(f"{name}*.onnx"))
    if variant or len(found) != 1:
        what = f"holds no {name}{variant}.onnx"
        if found:
            what += f"; there are {', '.join(p.name for p in found)}"
        raise FormatError(what, path=root)
    return found[0]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is not JSON: {error}", path=path) from error
    if not isinstance(content, dict):
        raise FormatError("is no JSON object", path=path)
    return content


def _config(root: Path) -> dict[str, Any]:
    """The numbers of special tokens."""
    config = _read(root / "config.json")
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    generation = _read(root / "generation_config.json")
    image = config.get("image_token_index", config.get("image_token_id"))
    ends = generation.get("eos_token_id", text.get("eos_token_id", config.get("eos_token_id")))
    made = {
        "image_token_index": _DEFAULTS["image_token_index"] if image is None else image,
        "eos_token_id": _DEFAULTS["eos_token_id"] if ends is None else ends,
    }
    numbers = [made["image_token_index"]]
    numbers += (
        made["eos_token_id"] if isinstance(made["eos_token_id"], list) else [made["eos_token_id"]]
    )
    if not all(isinstance(n, int) for n in numbers):
        raise FormatError(f"special tokens have numbers, got {made}", path=root / "config.json")
    return made


def _template(root: Path) -> str:
    file = root / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = _read(root / name).get("chat_template")
        if isinstance(found, str):
            return found
    return _TEMPLATE
