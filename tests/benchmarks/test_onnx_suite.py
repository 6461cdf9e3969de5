"""The command that runs the standard's suite: outcomes are told apart, nothing ends the run."""

from __future__ import annotations

import os
import time
import unittest

import pytest

pytest.importorskip("onnx")

from benchmarks.onnx_backend import Result, Suite, report, run_suite, short

from tilewright.errors import UnsupportedError


class Cases(unittest.TestCase):
    __test__ = False  # for the command to run, not for pytest

    def test_fine_cpu(self):
        pass

    def test_wrong_cpu(self):
        raise UnsupportedError("no such thing")

    def test_left_out_cpu(self):
        raise unittest.SkipTest("not here")

    def test_dies_cpu(self):
        os._exit(17)

    def test_hangs_cpu(self):
        time.sleep(60)


class Item:
    proto = (None,)


class Runner:
    _test_items = {"Some": dict.fromkeys(dir(Cases), Item)}  # noqa: RUF012


def test_a_run_survives_crashes_and_hangs():
    names = [("OnnxBackendSomeTest", n) for n in dir(Cases) if n.startswith("test_")]
    suite = Suite(Runner(), {"OnnxBackendSomeTest": Cases}, names)
    found = run_suite(suite, jobs=2, limit=1.0, progress=False)
    outcomes = {name: result.outcome for name, result in found.items()}
    assert outcomes == {
        "test_fine_cpu": "passed",
        "test_wrong_cpu": "failed",
        "test_left_out_cpu": "skipped",
        "test_dies_cpu": "crash",
        "test_hangs_cpu": "time",
    }
    assert "status 17" in found["test_dies_cpu"].reason
    assert "no such thing" in found["test_wrong_cpu"].reason


def test_the_report_names_what_differs():
    ours = {"a": Result("passed"), "b": Result("failed", "E: why", ("Relu",))}
    theirs = {"a": Result("failed", "E: type"), "b": Result("passed")}
    text = report({"tilewright": ours, "onnxruntime": theirs})
    assert "tilewright: 1 of 2 passed (1 failed)" in text
    assert "onnxruntime: 1 of 2 passed (1 failed)" in text
    assert "Relu (1)\n  failed: E: why\n      b  [onnxruntime passes]" in text
    assert "only onnxruntime passes (1):\n  b" in text
    assert "only tilewright passes (1):\n  a: E: type" in text


def test_reasons_are_short():
    many = "\n".join(f"  n{i}: Op{i} of ai.onnx opset 1: there is no such operator" for i in "ab")
    assert short(UnsupportedError(many)) == "UnsupportedError: there is no Opa, Opb"
    with pytest.raises(KeyError) as info:
        {}["x"]
    assert "test_onnx_suite.py:" in short(info.value)
