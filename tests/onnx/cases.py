"""The standard's own cases, of single operators and small models, run by name.

    python -m tests.onnx.cases 'test_slice*' 'test_pad_*'
    python -m tests.onnx.cases --ops Slice,Pad --keep-going

The cases are those of ``onnx.backend.test``; results are compared as its runner does.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import tilewright.onnx
from tilewright.errors import TilewrightError

DRAWN = ("test_bernoulli*", "test_training_dropout_default*", "test_training_dropout",
         "test_training_dropout_mask")  # fmt: skip
"""Cases that hold the numbers of NumPy's generator: the standard does not say which are drawn."""


@lru_cache(maxsize=1)
def node_cases() -> dict[str, Any]:
    """Every case by name: of one node, and the few small models."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(load_model_tests(kind="node"))
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        found += [_from_folder(case) for case in load_model_tests(kind=kind)]
    return {c.name: c for c in found}


def _from_folder(case: Any) -> Any:
    """A case whose model and values are files."""
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        inputs = [_value(data / f"input_{i}.pb", v) for i, v in enumerate(model.graph.input)]
        outputs = [_value(data / f"output_{i}.pb", v) for i, v in enumerate(model.graph.output)]
        sets.append((inputs[: len(list(data.glob("input_*.pb")))], outputs))
    return replace(case, model=model, data_sets=sets)


def _value(path: Path, info: Any) -> Any:
    if not path.exists():
        return None
    kind = info.type.WhichOneof("value")
    proto = onnx.SequenceProto() if kind == "sequence_type" else onnx.TensorProto()
    proto.ParseFromString(path.read_bytes())
    return proto


def operators_of(case: Any) -> set[str]:
    """The operators that stand in a case's graph."""
    return {n.op_type for n in case.model.graph.node}


def select(patterns: list[str], ops: set[str] | None = None) -> Iterator[Any]:
    """The cases whose names match a pattern (all without one) and that use one of ``ops``."""
    for name, case in node_cases().items():
        if patterns and not any(fnmatch.fnmatch(name, p) for p in patterns):
            continue
        if any(fnmatch.fnmatch(name, p) for p in DRAWN):
            continue
        if ops is None or operators_of(case) & ops:
            yield case


def run_case(case: Any, threads: int = 1) -> None:
    """Run one case; raises AssertionError where the results differ."""
    session = tilewright.onnx.load(case.model, threads=threads)
    for inputs, outputs in case.data_sets:
        names = [v.name for v in case.model.graph.input]
        feeds = {n: array_of(x) for n, x in zip(names, inputs)}
        feeds = {v.name: feeds[v.name] for v in session.inputs}
        got = session.run(feeds)
        assert list(got) == [o.name for o in session.outputs]
        for value, want in zip(got.values(), outputs):
            assert_similar(value, array_of(want), case.rtol, case.atol)


def array_of(value: Any) -> Any:
    """What a case holds, as arrays and lists of those."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, (list, tuple)):
        return [array_of(v) for v in value]
    return value


def assert_similar(got: Any, want: Any, rtol: float, atol: float) -> None:
    """``got`` is ``want`` within the tolerances, as ``onnx.backend.test.runner`` compares."""
    if isinstance(want, (list, tuple)):
        assert isinstance(got, (list, tuple)), f"a sequence is wanted, got {type(got)}"
        assert len(got) == len(want)
        for one, other in zip(got, want):
            assert_similar(one, other, rtol, atol)
        return
    if want is None:
        assert got is None
        return
    want = np.asarray(want)
    assert got.shape == want.shape, f"shape {want.shape} is wanted, got {got.shape}"
    if want.dtype.kind in "OUS":
        np.testing.assert_array_equal(got.astype(str), want.astype(str))
        return
    assert got.dtype == want.dtype, f"{want.dtype} is wanted, got {got.dtype}"
    if want.dtype.kind == "V" or want.dtype.name.startswith(("bfloat", "float8", "float4", "int")):
        if want.dtype.name == "bfloat16":
            rtol = max(rtol, 2**-6)
        wide = np.float32 if want.dtype.kind not in "iu" else np.int64
        got, want = got.astype(wide), want.astype(wide)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def main() -> int:
    """Run cases; returns how many fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="names, with * and ?")
    parser.add_argument("--ops", default="", help="operators, separated by commas")
    parser.add_argument("--slowest", type=int, default=0, help="list so many of the slowest")
    parser.add_argument("--quiet", action="store_true", help="only the sum")
    options = parser.parse_args()
    ops = set(options.ops.split(",")) if options.ops else None
    passed, failed, times = 0, 0, []
    for case in select(options.patterns, ops):
        start = time.perf_counter()
        try:
            run_case(case)
            passed += 1
        except (AssertionError, TilewrightError, Exception) as error:
            failed += 1
            if not options.quiet:
                lines = [line for line in str(error).splitlines() if line.strip()]
                print(f"{case.name}: {type(error).__name__}: {' | '.join(lines[:4])[:300]}")
        times.append((time.perf_counter() - start, case.name))
    for seconds, name in sorted(times, reverse=True)[: options.slowest]:
        print(f"{seconds:7.2f} s  {name}")
    print(f"{passed} passed, {failed} failed, {sum(t for t, _ in times):.1f} s")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 255))
