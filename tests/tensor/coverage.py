"""``python -m tests.tensor.coverage``: the functions of the Array API standard 2024.12, one a row.

Is it there, is its signature that of array-api-strict, and do the two agree on random calls.
"""

from __future__ import annotations

import argparse
import inspect
import warnings
from typing import Any

import array_api_strict as strict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tensor.standard import CASES, agree, run

import tilewright as tw
from tilewright.tensor import linalg_extension
from tilewright.tensor.api import CONSTANTS, DTYPES, STANDARD


def _parameters(function: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = inspect.signature(function).parameters.values()
    return {p.name: (p.kind, p.default is p.empty) for p in found}


def signature(name: str, ours: Any = tw, theirs: Any = strict) -> str:
    """``yes``, or what differs."""
    wanted, got = _parameters(getattr(theirs, name)), _parameters(getattr(ours, name))
    off = [k for k, v in wanted.items() if got.get(k) != v]
    return "yes" if not off else "differs: " + ", ".join(off)


def agreement(name: str, examples: int) -> str:
    """How many random calls gave the same, or the first that did not."""
    count = 0

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        nonlocal count
        call = data.draw(CASES[name].calls)
        agree(run(tw, name, call), run(strict, name, call), CASES[name].tolerance, name)
        count += 1

    try:
        compare()
    except Exception as error:  # a table of failures is what this is for
        return f"NO: {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"{count} calls"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=25, help="random calls per function")
    examples = parser.parse_args().examples
    print(f"{'function':26} {'module':14} {'present':8} {'signature':18} agrees with strict")
    total = present = same = 0
    for module, listed in STANDARD.items():
        for name in listed.split():
            total += 1
            there = hasattr(tw, name)
            present += there
            shape = signature(name) if there else "-"
            result = agreement(name, examples) if there and name in CASES else "-"
            same += result.endswith("calls")
            print(f"{name:26} {module:14} {'yes' if there else 'NO':8} {shape:18} {result}")
    for name in (n for n in linalg_extension.__all__ if n[0].islower()):
        shape = signature(name, tw.linalg, strict.linalg)
        print(f"linalg.{name:19} {'extension':14} {'yes':8} {shape:18} tests/tensor/test_linalg.py")
    for name in sorted({*DTYPES, *CONSTANTS}):
        print(f"{name:26} {'name':14} {'yes' if hasattr(tw, name) else 'NO':8}")
    print(f"{present} of {total} functions present, {same} agree; strict {strict.__version__}, "
          f"standard {tw.__array_api_version__}")  # fmt: skip


if __name__ == "__main__":
    main()
