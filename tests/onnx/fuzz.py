"""Damaged models, by the thousand: each is refused in words, or runs.

::

    python -m tests.onnx.fuzz --cases 5000 --seed 0 [--jobs 2] [--only 4711]

A case is a small model (:mod:`tests.onnx.fuzz_models`) after a few mutations
(:mod:`tests.onnx.fuzz_mutations`), read from a folder with a file of weights in it, a symbolic link
that leads out of it, and a secret beside it. It may end with one of tilewright's exceptions or with
results; within 5 seconds of processor time and 1 GB, in a process of its own. Everything else is
printed, with the number that repeats it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.workers import Limits, run_all
from tests.onnx.fuzz_models import SEEDS
from tests.onnx.fuzz_mutations import damaged

from tilewright.errors import TilewrightError

SECONDS, MEMORY = 5, 1 << 30
SECRET = np.float32(1234567.0)


@dataclass(frozen=True)
class Verdict:
    """How a case went: ``"ran"``, ``"refused"`` or, which it must not, ``"escaped"``."""

    kind: str
    text: str = ""


def prepare(folder: Path) -> Path:
    """The folder that models are read from: weights, a link that leaves it, a secret outside."""
    inside = folder / "model"
    inside.mkdir()
    np.full(1 << 12, SECRET).tofile(folder / "secret.bin")
    np.arange(64, dtype=np.float32).tofile(inside / "w.bin")
    (inside / "link.bin").symlink_to(folder / "secret.bin")
    (inside / "weights").mkdir()
    return inside


def case_bytes(seed: int, number: int) -> tuple[str, bytes]:
    """The file of a case, and what it was made from."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(SEEDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return name, damaged(rng, SEEDS[name]())


def attempt(path: Path, look: bool = True) -> Verdict:
    """Look into the model at ``path``, load it, and run it twice, in other sizes if it can."""
    import tilewright.onnx
    from tilewright.formats.onnx import open_model
    from tilewright.onnx.estimate import estimate

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if look:
                estimate(open_model(path), {"n": 3})
            session = tilewright.onnx.load(path, threads=1)
            for size in (3, 2):
                results = session.run({s.name: _value(s, size) for s in session.inputs})
    except TilewrightError as error:
        return _checked(Verdict("refused", type(error).__name__), before)
    except MemoryError:
        return Verdict("escaped", f"MemoryError {_where()}")
    except BaseException as error:
        return Verdict("escaped", f"{type(error).__name__}: {str(error)[:150]!r} {_where()}")
    if _holds_secret(list(results.values())):
        return Verdict("escaped", "a result holds what lies outside the folder")
    return _checked(Verdict("ran"), before)


def _where() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f for f in frames if "tilewright" in f.filename] or list(frames)
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-3:]))


def _checked(verdict: Verdict, before: int) -> Verdict:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MEMORY >> 10:
        return Verdict("escaped", f"{verdict.kind}, but took {grown >> 10} MB")
    return verdict


def _holds_secret(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_secret(v) for v in value)
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.float32
        and bool((value == SECRET).any())
    )


def _value(spec: Any, size: int) -> Any:
    """Something like what an input wants; where it wants too much, too little."""
    if spec.kind != "tensor":
        return [np.zeros(2, np.float32)] if spec.kind == "sequence" else None
    shape = [n if isinstance(n, int) and n <= 64 else size for n in spec.shape or (size,)][:8]
    if spec.dtype == "object":
        return np.full(shape, "text", object)
    rng = np.random.default_rng(size)
    try:
        return rng.integers(-3, 4, shape).astype(spec.dtype or "float32")
    except (TypeError, ValueError):
        return np.zeros(shape, np.float32)


def run_cases(
    seed: int, numbers: list[int], jobs: int, folder: Path
) -> tuple[Counter[str], dict[int, str]]:
    """Counts of what happened, and by number what must not have."""
    inside = prepare(folder)
    os.environ["TILEWRIGHT_THREADS"] = "1"

    def work(number: int) -> Verdict:
        _, data = case_bytes(seed, number)
        path = inside / f"{number}.onnx"
        path.write_bytes(data)
        begun = time.process_time()
        verdict = attempt(path, look=number % 25 == 0)  # that is slow
        path.unlink()
        spent = time.process_time() - begun
        if spent > SECONDS and verdict.kind != "escaped":
            return Verdict("escaped", f"{verdict.kind}, but took {spent:.1f} s")
        return verdict

    limits = Limits(seconds=60, cpu_seconds=SECONDS + 1, more_bytes=MEMORY, cases=100)
    counts: Counter[str] = Counter()
    bad: dict[int, str] = {}
    for number, outcome in run_all(work, numbers, jobs, limits):
        verdict = outcome.result if outcome.kind == "done" else Verdict("escaped", outcome.text)
        if outcome.kind == "time" and _loops(case_bytes(seed, number)[1]):
            verdict = Verdict("was at a long loop when its time was over")
        counts[f"{verdict.kind} {verdict.text}" if verdict.kind == "refused" else verdict.kind] += 1
        if verdict.kind == "escaped":
            bad[number] = verdict.text
    return counts, bad


def _loops(data: bytes) -> bool:
    """Whether a model has a loop that may run a thousand times: that takes what it takes."""
    import onnx

    made = onnx.load_from_string(data)
    counts = [onnx.numpy_helper.to_array(t) for t in made.graph.initializer if t.data_type == 7]
    long = any((a > 1000).any() for a in counts)
    return long and any(n.op_type == "Loop" for n in made.graph.node)


def main() -> int:
    """See the module's documentation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", type=int, help="one case, in this process")
    args = parser.parse_args()
    _warm_up()
    with tempfile.TemporaryDirectory() as folder:
        if args.only is not None:
            return _show(args.seed, args.only, prepare(Path(folder)))
        start = time.perf_counter()
        counts, bad = run_cases(args.seed, list(range(args.cases)), args.jobs, Path(folder))
    for what, n in counts.most_common():
        print(f"{n:6} {what}")
    alike: dict[str, list[int]] = {}
    for number, text in sorted(bad.items()):
        alike.setdefault(re.sub(r"\d+(\.\d+)? (s|MB)$", "", text), []).append(number)
    for text, numbers in sorted(alike.items(), key=lambda kv: -len(kv[1])):
        print(f"{len(numbers):6} escaped: {text}: {numbers[:8]}")
    print(f"{args.cases} cases, {len(bad)} escaped, {time.perf_counter() - start:.0f} s")
    return 1 if bad else 0


def _warm_up() -> None:
    """Import what cases use, so that forks share it."""
    from tests.onnx import fuzz_mutations

    fuzz_mutations._schemas()


def _show(seed: int, number: int, inside: Path) -> int:
    import onnx

    import tilewright.onnx

    name, data = case_bytes(seed, number)
    path = inside / "case.onnx"
    path.write_bytes(data)
    print(f"made from {name}, {len(data)} bytes")
    try:
        print(onnx.printer.to_text(onnx.load_from_string(data))[:6000])
    except Exception as error:
        print(f"(cannot be shown: {type(error).__name__}: {error})")
    session = tilewright.onnx.load(path, threads=1)
    print(session.run({s.name: _value(s, 3) for s in session.inputs}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
