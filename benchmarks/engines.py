"""The engines under comparison, each behind the same three calls.

As a program this is one engine in a process of its own, driven by JSON lines::

    python -m benchmarks.engines tilewright MODEL THREADS CONTEXT
    {"do": "prefill", "tokens": 512}           ->  {"seconds": ...}
    {"do": "decode", "context": 128, "tokens": 32}  ->  {"seconds": ...}
    {"do": "memory"}                           ->  {"peak_rss": ..., "anonymous_rss": ...}

A process each keeps peak memory apart; the driver lets only one of them work at a time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol

import numpy as np

from benchmarks.common import anonymous_rss_bytes, peak_rss_bytes

UBATCH = 512


class Engine(Protocol):
    """A loaded model with one sequence."""

    vocab: int

    def reset(self) -> None:
        """Forget the sequence."""
        ...

    def feed(self, ids: list[int]) -> None:
        """Append tokens to the sequence and compute the logits of the last one."""
        ...


class LlamaCpp:
    """llama.cpp through its C interface: no Python between tokens but one call.

    Its own defaults (float16 KV cache, repacked weights, automatic flash attention), batches of
    512, the given threads for prompt and generation alike.
    """

    def __init__(self, path: str, threads: int, context: int) -> None:
        import llama_cpp as api

        self.api = api
        quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(quiet, None)
        self._quiet = quiet  # the callback must outlive the library's use of it
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, params)
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def reset(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def feed(self, ids: list[int]) -> None:
        array = (self.api.llama_token * len(ids))(*ids)
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        self.api.llama_get_logits_ith(self.context, -1)  # waits for the result


class Tilewright:
    """tilewright through the engine that ``Model.generate`` uses, without a sampler."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import tilewright

        self.model = tilewright.load(path, threads=threads, context=context, max_sequences=1)
        self.vocab = self.model.config.vocab_size
        self.sequence = self.model.engine.open()

    def reset(self) -> None:
        self.model.engine.close(self.sequence)
        self.sequence = self.model.engine.open()

    def feed(self, ids: list[int]) -> None:
        self.model.engine.feed(self.sequence, ids)


ENGINES: dict[str, type[Tilewright] | type[LlamaCpp]] = {
    "tilewright": Tilewright,
    "llama.cpp": LlamaCpp,
}


def prompt(vocab: int, n: int) -> list[int]:
    """The same ids for every engine."""
    return np.random.default_rng(0).integers(3, vocab, n).tolist()


def prefill(engine: Engine, tokens: int) -> float:
    """Seconds for a prompt of ``tokens`` fed at once, the last token's logits included."""
    ids = prompt(engine.vocab, tokens)
    engine.reset()
    start = time.perf_counter()
    engine.feed(ids)
    return time.perf_counter() - start


def decode(engine: Engine, context: int, tokens: int) -> float:
    """Seconds for ``tokens`` single-token steps after a prompt of ``context`` tokens."""
    ids = prompt(engine.vocab, context + tokens)
    engine.reset()
    engine.feed(ids[:context])
    start = time.perf_counter()
    for i in ids[context:]:
        engine.feed([i])
    return time.perf_counter() - start


def main(arguments: list[str]) -> None:
    name, path, threads, context = arguments
    start = time.perf_counter()
    engine = ENGINES[name](path, int(threads), int(context))
    reply({"load_seconds": time.perf_counter() - start})
    for line in sys.stdin:
        request = json.loads(line)
        match request.pop("do"):
            case "prefill":
                reply({"seconds": prefill(engine, **request)})
            case "decode":
                reply({"seconds": decode(engine, **request)})
            case "memory":
                reply({"peak_rss": peak_rss_bytes(), "anonymous_rss": anonymous_rss_bytes()})
            case other:
                raise ValueError(f"request {other!r}: wanted prefill, decode or memory")


def reply(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
