"""Error of the logits against a float64 forward pass, as a multiple of llama.cpp's own.

    python -m benchmarks.accuracy --types q8_0,q4_0,q4_k,q6_k,q4_k_m

Small random models of the llama and GPT-2 shapes, 96 tokens; ``tests/parity`` holds the same ratio
under a bound for every type.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from tests.reference import builders, forward, peer
from tests.reference.errors import errors

from benchmarks.common import table, write_report

WRITERS = {"llama": builders.write_llama, "gpt2": builders.write_gpt2}


def main() -> None:
    import tilewright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default="f32,f16,q8_0,q4_0,q4_k,q6_k,q4_k_m,q5_k")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    ids = np.random.default_rng(5).integers(0, builders.LLAMA.n_vocab, 96).tolist()
    rows = []
    for kind in options.types.split(","):
        for shape, write in WRITERS.items():
            with tempfile.TemporaryDirectory() as folder:
                path = write(Path(folder) / "m.gguf", kind)
                exact = forward.logits(path, ids)
                ours = errors(tilewright.load(path, threads=2).logits(ids), exact).rms
                theirs = errors(peer.logits(path, ids), exact).rms
            rows.append([kind, shape, f"{ours:.3g}", f"{theirs:.3g}", f"{ours / theirs:.3f}"])
    header = ["type", "shape", "tilewright rms", "llama.cpp rms", "ratio"]
    write_report(options.json, {"rms": [dict(zip(header, row)) for row in rows]})
    print(table(header, rows))


if __name__ == "__main__":
    main()
