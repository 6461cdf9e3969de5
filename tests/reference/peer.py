"""llama.cpp as a second opinion on logits, through llama-cpp-python (imported only when asked)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1


def logits(
    path: str | Path, token_ids: Sequence[int], *, threads: int = 2, f32_cache: bool = False
) -> NDArray[np.float32]:
    """Logits of every position, (tokens, vocab); ``f32_cache`` replaces its float16 KV cache."""
    import llama_cpp

    cache = GGML_TYPE_F32 if f32_cache else GGML_TYPE_F16
    model = llama_cpp.Llama(
        str(path),
        n_ctx=0,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        type_k=cache,
        type_v=cache,
        verbose=False,
    )
    try:
        model.eval(list(token_ids))
        return np.array(model.scores[: len(token_ids)], np.float32)
    finally:
        model.close()
