"""``tilewright.load(path)``: a model that generates text and answers with logits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.compiler import CompileOptions, compile_graph, memory_needs
from tilewright.errors import ContextLengthError, FormatError, OutOfMemoryError
from tilewright.formats.gguf import GGUFFile, open_gguf
from tilewright.generate.engine import Engine, Work
from tilewright.generate.engine import Sequence as CacheSequence
from tilewright.generate.sampling import Sampler, SamplingParams
from tilewright.generate.stream import TextStream
from tilewright.layers import StepLimits
from tilewright.models.load import ModelConfig, load_graph, model_config, slow_types
from tilewright.ops.kvcache import PAGE
from tilewright.runtime.memory import available_bytes
from tilewright.tokenizers import Tokenizer, from_metadata

__all__ = ["DEFAULT_CONTEXT", "DEFAULT_MODEL", "Generation", "Model", "load", "plan_file"]

DEFAULT_CONTEXT = 4096
DEFAULT_MODEL = Path(__file__).parent.parent / "assets" / "default.gguf"


@dataclass
class Timings:
    """Seconds and tokens of one generation; getting kernels ready is counted apart."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0


class Generation(Iterator[str]):
    """Pieces of text as they become certain; iterate it, or ``str.join`` it.

    Attributes:
        ids: the tokens generated so far.
        reason: None while running, then ``"eos"`` (the model ended), ``"stop"`` (a stop string),
            ``"length"`` (``max_tokens`` reached) or ``"context"`` (no room left).
        timings: tokens and seconds of the prompt and of the answer.
    """

    def __init__(
        self,
        model: Model,
        prompt_ids: list[int],
        max_tokens: int | None,
        params: SamplingParams,
        stop: Sequence[str],
        sequence: CacheSequence | None = None,
    ) -> None:
        room = model.engine.limits.context - (sequence.length if sequence else 0)
        if len(prompt_ids) > room:
            raise ContextLengthError(
                f"the prompt has {len(prompt_ids)} tokens, the context has room for {room}; "
                "load the model with a larger context"
            )
        if not prompt_ids:
            raise ValueError("the prompt is empty and the model has no token to begin with")
        self.ids: list[int] = []
        self.reason: str | None = None
        self.timings = Timings(prompt_tokens=len(prompt_ids))
        self._model = model
        self._prompt = prompt_ids
        self._limit = max_tokens
        # Models pad their vocabulary to a round size; rows past the tokenizer's mean no token.
        self._tokens = model.tokenizer.vocab_size
        self._sampler = Sampler(params, self._tokens)
        self._stream = TextStream(model.tokenizer, stop, continuation=True)
        self._sequence = sequence
        self._owned = sequence is None
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop early and give the cache back."""
        self._pieces.close()

    def _timed(self, work: Callable[..., np.ndarray], *args: Any) -> tuple[np.ndarray, float]:
        """What ``work(*args)`` returns and its seconds, less those for kernels."""
        program = self._model.engine.program
        compiled, start = program.compile_seconds, time.perf_counter()
        result = work(*args)
        compiled = program.compile_seconds - compiled
        self.timings.compile_seconds += compiled
        return result, time.perf_counter() - start - compiled

    def _run(self) -> Any:
        engine = self._model.engine
        sequence = self._sequence or engine.open()
        try:
            logits, self.timings.prompt_seconds = self._timed(engine.feed, sequence, self._prompt)
            history = [i for i in self._prompt if i < self._tokens]
            eos = self._model.tokenizer.eos_ids
            while self.reason is None:
                if self._limit is not None and len(self.ids) >= self._limit:
                    self.reason = "length"
                    break
                token = self._sampler.sample(logits[: self._tokens], history)
                if token in eos:
                    self.reason = "eos"
                    break
                self.ids.append(token)
                history.append(token)
                piece = self._stream.push(token)
                if self._stream.stopped:
                    self.reason = "stop"
                    break
                if piece:
                    yield piece
                if sequence.length >= engine.limits.context:
                    self.reason = "context"
                    break
                steps, seconds = self._timed(engine.step, [Work(sequence, [token])])
                logits = steps[0]
                self.timings.seconds += seconds
                self.timings.tokens += 1
            rest = self._stream.finish()
            if rest:
                yield rest
        finally:
            if self._owned:
                engine.close(sequence)


class Model:
    """A loaded decoder.

    Attributes:
        config: what the model is made of.
        tokenizer: text to ids and back.
        engine: sequences, cache and steps, for callers that batch themselves.
        plan: bytes of weights, cache and working memory.
        notes: things worth telling the user once (slow formats, say).
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        engine: Engine,
        plan: dict[str, int],
        notes: list[str],
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine
        self.plan = plan
        self.notes = notes

    @property
    def threads(self) -> int:
        """Workers that run it, the calling thread included."""
        return self.engine.program.pool.threads

    @property
    def matrix_weights(self) -> int:
        """Weights that one token is multiplied with."""
        return sum(m.n * m.k for m in self.engine.program.matrices())

    @property
    def matrix_bytes(self) -> int:
        """Bytes of them in memory."""
        return sum(m.nbytes for m in self.engine.program.matrices())

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = None,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Generation:
        """Continue ``prompt`` (text, or token ids taken as they are); iterate the pieces of text.

        ``max_tokens`` None goes on until the model ends or the context is full.
        """
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
        )
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        return Generation(self, ids, max_tokens, params, stops)

    def logits(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits after every token of one sequence: (tokens, vocab) float32."""
        ids = np.asarray(token_ids, np.int64)
        if ids.ndim != 1:
            raise ValueError(f"token_ids has shape {ids.shape}, wants (tokens,)")
        limits = self.engine.limits
        chunk = min(limits.tokens, limits.outputs)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        sequence = self.engine.open()
        try:
            for start in range(0, len(ids), chunk):
                part = ids[start : start + chunk]
                out[start : start + len(part)] = self.engine.step([Work(sequence, part, len(part))])
        finally:
            self.engine.close(sequence)
        return out


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    max_sequences: int = 2,
    max_tokens: int = 512,
    fuse: bool = True,
    progress: Callable[[str, float], None] | None = None,
) -> Model:
    """Open, check, plan, compile and load the model in ``path`` (a GGUF file).

    Args:
        path: the file; None loads the small model that ships with the package.
        threads: worker threads, the caller's included; None takes the configured number.
        context: tokens of one sequence; None takes the model's own, at most 4096.
        max_sequences: sequences in the cache at once.
        max_tokens: tokens of one step; longer prompts are fed in chunks.
        fuse: False runs every op as a kernel of its own (same bits, slower).
        progress: called with (what is being done, fraction done).

    Raises:
        FormatError: the file is damaged, or a tensor is missing or left over.
        UnsupportedError: an architecture, key, tensor type or tokenizer without code.
        OutOfMemoryError: weights, cache and working memory do not fit what is free.
    """
    source = DEFAULT_MODEL if path is None else path
    with open_gguf(source) as file:
        config, tokenizer = _describe(file)
        limits = _limits(config, context, max_sequences, max_tokens)
        if context and context > limits.context:
            asked = f"a context of {context} tokens was asked for"
            notes = [f"{asked}; the model ends at {limits.context}, which is used"]
        else:
            notes = []
        loaded = load_graph(file, limits, config)
        notes += [
            f"{count} tensors of type {kind} go the generic dequantising path (slower)"
            for kind, count in slow_types(file).items()
        ]
        options = CompileOptions(threads=threads, fuse=fuse, progress=progress)
        program = compile_graph(loaded.graph, options, before_memory=_check_memory)
    engine = Engine(program, limits, config.vocab_size)
    return Model(config, tokenizer, engine, program.plan_bytes(), notes)


def plan_file(file: GGUFFile, context: int | None = None) -> dict[str, int]:
    """Bytes that running the file would take: weights, state (the cache), working memory.

    Raises whatever :func:`load` would raise for what the header says; no weight is read.
    """
    config, _ = _describe(file)
    limits = _limits(config, context, 1, 512)
    return memory_needs(load_graph(file, limits, config).graph)


def _describe(file: GGUFFile) -> tuple[ModelConfig, Tokenizer]:
    """What the metadata says; raises where it cannot be understood or does not fit together."""
    config = model_config(file.metadata, file.path)
    tokenizer = from_metadata(file.metadata)
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}",
            path=file.path,
        )
    return config, tokenizer


def _limits(
    config: ModelConfig, context: int | None, max_sequences: int, max_tokens: int
) -> StepLimits:
    length = min(context or DEFAULT_CONTEXT, config.context_length)
    tokens = min(max_tokens, length * max_sequences)
    return StepLimits(
        context=length,
        tokens=tokens,
        sequences=max_sequences,
        outputs=min(tokens, 64),
        pages=-(-length // PAGE) * max_sequences,
    )


def _check_memory(plan: dict[str, int]) -> None:
    """Refuse a plan that the machine cannot hold, before taking any of it."""
    total, free = sum(plan.values()), available_bytes()
    if free is not None and total > free:
        parts = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in plan.items())
        raise OutOfMemoryError(
            f"the model needs {total / 1e6:.0f} MB ({parts}), {free / 1e6:.0f} MB are available; "
            "a smaller context or quantisation needs less"
        )
