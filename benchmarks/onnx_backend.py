"""The onnx package's own backend suite, for tilewright and for onnxruntime's CPU provider.

::

    python -m benchmarks.onnx_backend [--pattern REGEX] [--engine E] [--json OUT] [--jobs N]

Every case that ``onnx.backend.test`` ships (one node, simple models, models converted from PyTorch,
PyTorch operators, image networks with made-up weights) runs through its own ``BackendTest``, with
its own data and tolerances, first with one engine and then with the other. A case has a limited
time, and a process of its own where it takes the process with it. What is printed: both pass
counts, each of our failures with its reason by operator, and what only one of the two passes.

onnxruntime's Python backend takes no element types that NumPy lacks: its cases with bfloat16,
float8 and 4-bit types fail there. They are counted as what they are and named at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
import traceback
import unittest
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import machine, write_report
from benchmarks.workers import Limits, run_all

ENGINES = ("tilewright", "onnxruntime")


@dataclass
class Result:
    """How a case ended: ``passed``, ``failed``, ``skipped``, ``time`` or ``crash``."""

    outcome: str
    reason: str = ""
    ops: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class Suite:
    """Cases by name, as ``BackendTest`` makes them for an engine."""

    runner: Any
    classes: dict[str, type[unittest.TestCase]]
    names: list[tuple[str, str]] = field(default_factory=list)

    def run(self, category: str, name: str) -> Result:
        """Run one case in this process."""
        case = self.classes[category](name)
        start = time.perf_counter()
        outcome, reason = "passed", ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(case, name)()
        except unittest.SkipTest as error:
            outcome, reason = "skipped", str(error)
        except BaseException as error:
            outcome, reason = "failed", short(error)
        seconds = time.perf_counter() - start
        item = self.runner._test_items[category.removeprefix("OnnxBackend").removesuffix("Test")]
        return Result(outcome, reason, operators(item[name].proto[0]), seconds)


def short(error: BaseException) -> str:
    """An error in one line; of what nobody raises on purpose also where it comes from."""
    kind = type(error).__name__
    missing = re.findall(r": (\S+) of (\S+) opset \d+: there is no such", str(error))
    if missing:
        names = dict.fromkeys(op if d == "ai.onnx" else f"{d}.{op}" for op, d in missing)
        return f"{kind}: there is no {', '.join(names)}"
    text = " ".join(str(error).split())
    if kind == "AssertionError":
        text = re.sub(r" ACTUAL:.*| x: array.*", "", text)
    elif not type(error).__module__.startswith(("tilewright", "onnxruntime")):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text += f" ({os.path.basename(frame.filename)}:{frame.lineno})"
    return f"{kind}: {text}"[:400]


def operators(model: Any) -> tuple[str, ...]:
    """The operators of a model in the order of the file, each once."""
    if model is None:
        return ()
    found = (f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in model.graph.node)
    return tuple(dict.fromkeys(found))


def load_suite(engine: str, pattern: str) -> Suite:
    """The cases for the CPU whose names match ``pattern``."""
    from onnx.backend.test import BackendTest

    if engine == "tilewright":
        from tilewright.onnx.backend import TilewrightBackend

        class Backend(TilewrightBackend):  # a failure with its reason, not a case left out
            is_compatible = None

        backend: Any = Backend
    else:
        import onnxruntime.backend as backend
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = BackendTest(backend, __name__)
    suite = Suite(runner, runner.test_cases)
    for category, case in suite.classes.items():
        for name in unittest.defaultTestLoader.getTestCaseNames(case):
            if name.endswith("_cpu") and re.search(pattern, name):
                suite.names.append((category, name))
    return suite


def run_suite(suite: Suite, jobs: int, limit: float, progress: bool) -> dict[str, Result]:
    """Every case's result, ``jobs`` at a time."""
    results: dict[str, Result] = {}
    for (_, name), outcome in run_all(
        lambda case: suite.run(*case), suite.names, jobs, Limits(seconds=limit)
    ):
        results[name] = (
            outcome.result if outcome.kind == "done" else Result(outcome.kind, outcome.text)
        )
        if progress:
            print(f"\r{len(results)}/{len(suite.names)} ", end="", file=sys.stderr, flush=True)
    if progress:
        print("\r", end="", file=sys.stderr)
    return results


def report(results: dict[str, dict[str, Result]]) -> str:
    """Counts, our failures by operator, and what only one of the engines passes."""
    lines = []
    for engine, found in results.items():
        counts: dict[str, int] = defaultdict(int)
        for result in found.values():
            counts[result.outcome] += 1
        rest = ", ".join(f"{n} {o}" for o, n in sorted(counts.items()) if o != "passed")
        lines.append(f"{engine}: {counts['passed']} of {len(found)} passed ({rest or 'all'})")
    ours, theirs = results.get("tilewright", {}), results.get("onnxruntime", {})
    groups: dict[str, list[str]] = defaultdict(list)
    for name, result in ours.items():
        if result.outcome != "passed":
            groups[" ".join(result.ops[:3]) or "(no model)"].append(name)
    lines.append(f"\ntilewright fails, by operator ({sum(map(len, groups.values()))} cases):")
    for op, names in sorted(groups.items(), key=lambda kv: (-len(kv[1]), kv[0])):
        lines.append(f"\n{op} ({len(names)})")
        by_reason: dict[str, list[str]] = defaultdict(list)
        for name in names:
            by_reason[f"{ours[name].outcome}: {ours[name].reason}"].append(name)
        for reason, same in by_reason.items():
            lines.append(f"  {reason}")
            lines += [f"      {n}{_passed_by(theirs.get(n))}" for n in same]
    if ours and theirs:
        only_us = [n for n, r in ours.items() if r.outcome == "passed" != theirs[n].outcome]
        only_they = [n for n, r in theirs.items() if r.outcome == "passed" != ours[n].outcome]
        lines.append(f"\nonly onnxruntime passes ({len(only_they)}):")
        lines += [f"  {n}" for n in sorted(only_they)]
        lines.append(f"\nonly tilewright passes ({len(only_us)}):")
        lines += [f"  {n}: {theirs[n].reason[:160]}" for n in sorted(only_us)]
    return "\n".join(lines)


def _passed_by(theirs: Result | None) -> str:
    return "" if theirs is None else "  [onnxruntime passes]" * (theirs.outcome == "passed")


def main() -> None:
    """See the module's documentation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--pattern", default="", help="only cases whose names match")
    parser.add_argument("--engine", choices=ENGINES, help="only this one; default both")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a case")
    parser.add_argument("--json", dest="path", help="write everything there too")
    args = parser.parse_args()
    os.environ.setdefault("TILEWRIGHT_THREADS", "1")
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # onnxruntime: run the newest too
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONNX_MODELS"] = folder
        for engine in [args.engine] if args.engine else ENGINES:
            suite = load_suite(engine, args.pattern)
            results[engine] = run_suite(suite, args.jobs, args.limit, sys.stderr.isatty())
    print(report(results))
    write_report(
        args.path,
        {
            "machine": machine(),
            "cases": {e: {n: vars(r) for n, r in rs.items()} for e, rs in results.items()},
        },
    )


if __name__ == "__main__":
    main()
