"""tilewright beside llama.cpp on the same GGUF files, in one run, taking turns.

    python -m benchmarks.decoder_vs_llamacpp --models DIR --types q8_0,q4_k_m,f16 -t 2 -r 5

Each engine loads the model in its own process and keeps it; measurements alternate (who begins
alternates too), so that both see the same machine, and ratios are formed within a pair. While one
works the other sleeps. Prompt tokens are the same; decode feeds known tokens, so no sampler is in
the time. The machine's limits are measured in the same run. Models missing in DIR are written
first (random weights, real shape: ``tests/reference/builders.py``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Spread, ceilings, machine, spread, table, write_report
from benchmarks.engines import ENGINES


@dataclass(frozen=True)
class Work:
    """What one repetition measures."""

    prefill_tokens: int
    decode_context: int
    decode_tokens: int


class Worker:
    """An engine in its own process, see :mod:`benchmarks.engines`."""

    def __init__(self, engine: str, path: Path, threads: int, context: int) -> None:
        command = [sys.executable, "-m", "benchmarks.engines", engine]
        self.process = subprocess.Popen(
            [*command, str(path), str(threads), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.engine = engine
        self.load_seconds = float(self._reply()["load_seconds"])

    def ask(self, do: str, **arguments: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.engine} process ended with {self.process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        self.process.communicate()


def measure(
    path: Path, engines: list[str], threads: int, work: Work, rounds: int
) -> dict[str, Any]:
    """Figures per engine, and ratios first engine / second engine of each pair."""
    context = max(work.prefill_tokens, work.decode_context + work.decode_tokens)
    workers = {e: Worker(e, path, threads, context) for e in engines}
    rates: dict[str, dict[str, list[float]]] = {e: {"prefill": [], "decode": []} for e in engines}
    decode = {"context": work.decode_context, "tokens": work.decode_tokens}
    for worker in workers.values():  # first use compiles, packs and faults pages in
        worker.ask("prefill", tokens=work.prefill_tokens)
        worker.ask("decode", **decode)
    for i in range(rounds):
        turn = engines if i % 2 == 0 else engines[::-1]
        for e in turn:
            seconds = workers[e].ask("prefill", tokens=work.prefill_tokens)["seconds"]
            rates[e]["prefill"].append(work.prefill_tokens / seconds)
        for e in turn:
            seconds = workers[e].ask("decode", **decode)["seconds"]
            rates[e]["decode"].append(work.decode_tokens / seconds)
    weights = bytes_per_token(path)
    result: dict[str, Any] = {"file_bytes": path.stat().st_size, "bytes_per_token": weights}
    for e, worker in workers.items():
        speed = {phase: spread(values) for phase, values in rates[e].items()}
        result[e] = {
            "prefill_tokens_per_s": speed["prefill"],
            "decode_tokens_per_s": speed["decode"],
            "decode_gb_per_s": speed["decode"].median * weights / 1e9,
            "load_seconds": worker.load_seconds,
            **worker.ask("memory"),
        }
        worker.close()
    if len(engines) == 2:
        first, second = (rates[e] for e in engines)
        result["ratio"] = {
            phase: spread([a / b for a, b in zip(first[phase], second[phase])]) for phase in first
        }
    return result


def bytes_per_token(path: Path) -> int:
    """Bytes of weights that one decode step reads: all but the rows of untied embeddings."""
    import gguf

    tensors = {t.name: int(t.n_bytes) for t in gguf.GGUFReader(path).tensors}
    unread = ["position_embd.weight"]
    if "output.weight" in tensors:
        unread.append("token_embd.weight")
    return sum(n for name, n in tensors.items() if name not in unread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="directory of the models, made if absent")
    parser.add_argument("--shape", default="tinyllama", help="tinyllama, gpt2 or stories15m")
    parser.add_argument("--types", default="q8_0,q4_k_m,f16")
    parser.add_argument("--engines", default=",".join(ENGINES), help="first / second is the ratio")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--tokens", type=int, default=32)
    parser.add_argument("-c", "--context", type=int, default=128)
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()

    from tests.reference.builders import cached

    engines = options.engines.split(",")
    work = Work(options.prompt, options.context, options.tokens)
    limits = [ceilings(options.threads)]
    report: dict[str, Any] = {"machine": machine(), "threads": options.threads}
    report |= {"work": vars(work), "ceilings": limits, "models": {}}
    rows = []
    for kind in options.types.split(","):
        name = f"{options.shape}-{kind}"
        result = measure(
            cached(options.models, name), engines, options.threads, work, options.rounds
        )
        report["models"][name] = result
        limits.append(ceilings(options.threads))  # bandwidth and neighbours change as it runs
        rows += [row(name, e, result, i == 0) for i, e in enumerate(engines)]
        write_report(options.json, report)  # after every model: a long run may be cut short
    header = [
        "model",
        "engine",
        f"prefill {work.prefill_tokens} tok/s",
        f"decode at {work.decode_context} tok/s",
    ]
    header += ["GB/s", "peak RSS MB", "load s", "prefill ratio", "decode ratio"]
    print(table(header, rows))
    print(f"load average before: {report['machine']['load_average']}; limits, one line a model:")
    print("\n".join(str(limit) for limit in limits))


def row(name: str, engine: str, result: dict[str, Any], first: bool) -> list[str]:
    """One line of the table; ratios stand beside the first engine."""
    r = result[engine]
    ratio: dict[str, Spread | str] = result.get("ratio", {}) if first else {}
    return [
        name,
        engine,
        str(r["prefill_tokens_per_s"]),
        str(r["decode_tokens_per_s"]),
        f"{r['decode_gb_per_s']:.1f}",
        f"{r['peak_rss'] / 1e6:.0f}",
        f"{r['load_seconds']:.2f}",
        str(ratio.get("prefill", "")),
        str(ratio.get("decode", "")),
    ]


if __name__ == "__main__":
    main()
