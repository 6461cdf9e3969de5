"""Signatures, fingerprints, generated source, and the public names."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tilewright import lang
from tilewright.dtypes import bf16, f32, i64
from tilewright.errors import KernelError
from tilewright.lang import Array, Arrays, Const, KernelFunction, bf16_array
from tilewright.lang.ir import ArrayType, TileType

NAMES = {name: getattr(lang, name) for name in lang.__all__}
SCALE = 2.0


def shift(v):
    return v + SCALE


def kernel(x: Array, y: Array, n: i64, B: Const = 4, f: Const = None, more: Arrays = ()):
    v = shift(x[0:B])
    if f is not None:
        v = f(v)
    y[0:B] = v * n


KERNEL = KernelFunction(kernel)


def test_public_names():
    names = {n for n in vars(lang) if not n.startswith("_")}
    modules = {n for n in names if type(getattr(lang, n)).__name__ == "module"}
    assert names - modules - {"TYPE_CHECKING", "TypeAlias", "Any", "annotations"} == set(
        lang.__all__
    )
    for name in lang.__all__:
        value = getattr(lang, name)
        assert isinstance(value, float) or value.__doc__, name


def test_python_names_keep_their_meaning_outside_kernels():
    assert lang.sum([1, 2, 3]) == 6
    assert lang.sum([[1], [2]], []) == [1, 2]
    assert lang.max("ab", key=ord) == "b"
    assert lang.min([], default=7) == 7
    assert lang.min(3, 2) == 2
    assert lang.any(v > 1 for v in (1, 2))
    assert not lang.all([1, 0])
    assert lang.round(2.567, 1) == 2.6
    assert isinstance(lang.round(2.5), int)
    assert lang.abs(-3) == 3
    assert lang.pow(2, 3) == 8
    assert list(lang.range(1, 7, 2)) == [1, 3, 5]


def test_the_example_in_the_docstring_works():
    doc = lang.__doc__
    assert doc is not None
    lines = doc.split("@tilewright.kernel\n")[1].split("\n\n")[0]
    function = KernelFunction.from_source(textwrap.dedent(lines), "rms_norm", NAMES)
    x = np.random.default_rng(0).standard_normal((3, 21)).astype(np.float32)
    w, y = x[0] + 1, np.zeros_like(x)
    function.interpret(3)(x, w, y, 1e-5, BLOCK=8)
    want = x / np.sqrt((x.astype("d") ** 2).mean(1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(y, want, rtol=1e-5)


def test_default_typing_of_arrays():
    x = np.zeros((3, 4), np.float32)
    signature = KERNEL.signature((x, x[:, ::2], 3))
    assert signature["x"] == ArrayType(f32, (None, None), (None, 1))
    assert signature["y"] == ArrayType(f32, (None, None), (None, None))
    assert signature["n"] == TileType(i64)
    assert signature["B"] == 4
    assert KERNEL.signature((x[:, :1], x.T, 3))["x"].strides == (None, 1)  # one column
    assert KERNEL.signature((x[:, ::-1], x.T, 3))["x"].strides == (None, None)
    half = bf16_array(np.zeros((2, 3), np.uint16))
    assert KERNEL.signature((half, x, 3))["x"] == ArrayType(bf16, (None, None), (None, 1))
    explicit = ArrayType.dense(f32, (3, 4))
    assert KERNEL.signature((explicit, x, 3))["x"] is explicit
    with pytest.raises(KernelError, match="not whole elements"):
        KERNEL.signature((np.zeros(4, "f4,i2")["f0"], x, 3))
    with pytest.raises(KernelError, match="uint16 bit patterns"):
        bf16_array(x)


def test_signatures_are_keys():
    x = np.zeros(4, np.float32)
    a = KERNEL.signature((x, x, 1), {"B": 1})
    assert a == KERNEL.signature((x, x.copy(), 2), {"B": 1})
    assert hash(a) == hash(KERNEL.signature((x, x, 7), {"B": 1}))
    others = [
        KERNEL.signature((x, x, 1), {"B": b}) for b in (1.0, True, 2, "1", (1,), -0.0, 0.0, None)
    ]
    assert len({a, *others}) == 9
    assert str(a).startswith("x: array<f32[?]:1>, y: array<f32[?]:1>, n: i64, B: int 1, f: None")
    nested = {
        KERNEL.signature((x, x, 1), {"f": v})
        for v in ((1, 2), (1.0, 2), [1, 2], {"a": 1}, {"a": 1.0})
    }
    assert len(nested) == 5


def test_signature_text_names_inline_functions_by_what_they_do():
    x = np.zeros(4, np.float32)
    fs = [lambda v: v + 1, lambda v: v + 2, scaled(2.0), scaled(3.0), shift]
    texts = {str(KERNEL.signature((x, x, 1), {"f": f})) for f in fs}
    assert len(texts) == 5
    assert str(KERNEL.signature((x, x, 1), {"f": scaled(2.0)})) in texts


def scaled(factor):
    def scale(v):
        return v * factor

    return scale


def test_fingerprint_follows_what_the_kernel_can_reach(monkeypatch):
    first = KERNEL.fingerprint()
    assert first == KERNEL.fingerprint()
    assert len(first) == 64
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    second = KERNEL.fingerprint()
    assert second != first
    monkeypatch.setattr(sys.modules[__name__], "shift", lambda v: v - SCALE)
    assert KERNEL.fingerprint() not in (first, second)
    monkeypatch.undo()
    assert KERNEL.fingerprint() == first


def test_fingerprint_of_const_functions():
    x = np.zeros(4, np.float32)

    def of(f: Any) -> str:
        return KERNEL.fingerprint(KERNEL.signature((x, x, 1), {"f": f}))

    assert of(scaled(2.0)) == of(scaled(2.0))
    assert of(scaled(2.0)) != of(scaled(3.0))  # the same source, other captured constants
    assert of(scaled(2)) != of(scaled(2.0))
    a, b = (lambda v: v, lambda v: v * 2)  # one line
    assert of(a) != of(b)
    assert of(scaled(scaled)) != of(scaled(shift))


@dataclass(frozen=True)
class Spec:
    n: int
    fn: Any

    def size(self):
        return self.n * 2


def test_fingerprint_of_dataclasses():
    x = np.zeros(4, np.float32)

    def of(f: Any) -> str:
        return KERNEL.fingerprint(KERNEL.signature((x, x, 1), {"f": f}))

    assert of(Spec(1, shift)) == of(Spec(1, shift))
    assert len({of(Spec(1, shift)), of(Spec(2, shift)), of(Spec(1, scaled(1)))}) == 3


class Tuning:
    WIDTH = 4
    OTHER = 1


def test_fingerprint_of_classes_objects_and_modules(monkeypatch):
    settings = types.SimpleNamespace(width=4, other=1, deep=types.SimpleNamespace(width=1))
    module = types.ModuleType("settings")
    module.width = 4
    module.other = 1
    env = {**NAMES, "T": Tuning, "s": settings, "m": module}
    text = "def kernel(y: Array):\n    y[0] = T.WIDTH + s.width + s.deep.width + m.width\n"
    function = KernelFunction.from_source(text, "kernel", env)
    first = function.fingerprint()
    for holder, name in [(Tuning, "OTHER"), (settings, "other"), (module, "other")]:
        monkeypatch.setattr(holder, name, 9)
        assert function.fingerprint() == first  # not used
    for holder, name in [
        (Tuning, "WIDTH"), (settings, "width"), (settings.deep, "width"), (module, "width")
    ]:  # fmt: skip
        monkeypatch.setattr(holder, name, 9)
        second = function.fingerprint()
        assert second != first
        first = second
    y = np.zeros(1, np.float32)
    function.interpret(1)(y)
    assert y[0] == 36
    x = np.zeros(4, np.float32)
    a, b = (str(KERNEL.signature((x, x, 1), {"f": types.SimpleNamespace(n=n)})) for n in (1, 2))
    assert a != b


def test_fingerprint_is_the_same_in_another_process():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import test_function as t; print(t.KERNEL.fingerprint())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *sys.path], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == KERNEL.fingerprint()


def test_fingerprint_and_signature_are_fast():
    x = np.zeros((4, 4), np.float32)
    signature = KERNEL.signature((x, x, 1), {"f": scaled(2.0)})
    KERNEL.fingerprint(signature)

    def best(fn: Any) -> float:
        times = []
        for _ in range(50):
            start = time.thread_time()
            fn()
            times.append(time.thread_time() - start)
        return min(times)

    assert best(lambda: KERNEL.fingerprint(signature)) < 200e-6
    assert best(lambda: KERNEL.signature((x, x, 1), {"B": 4})) < 50e-6


def test_parsing_is_fast():
    body = "\n".join(f"    v = fma(v, {i}.5, x[{i} : {i} + 16]) * 0.5" for i in range(70))
    text = f"def kernel(x: Array):\n    v = x[0:16]\n{body}\n    x[0:16] = v\n"
    function = KernelFunction.from_source(text, "kernel", NAMES)
    signature = function.signature((np.zeros(200, np.float32),))
    assert 200 < len(list(function.ir(signature).body.walk())) < 400
    best = 1.0
    for _ in range(10):
        start = time.thread_time()
        function.ir(signature)
        best = min(best, time.thread_time() - start)
    assert best < 0.02  # a few milliseconds on an idle machine


def test_from_source_registers_lines_for_tracebacks():
    text = "def kernel(y: Array):\n    y[0] = 1.0 + missing\n"
    function = KernelFunction.from_source(text, "kernel", NAMES)
    with pytest.raises(KernelError, match=r"y\[0\] = 1.0 \+ missing"):
        function.interpret(1)(np.zeros(1, np.float32))
    assert (
        function.fingerprint()
        != KernelFunction.from_source(text + "\n    y[0] = 2", "kernel", NAMES).fingerprint()
    )
    with pytest.raises(KernelError, match="defines no function 'other'"):
        KernelFunction.from_source(text, "other", NAMES)


def test_from_source_sees_its_environment():
    text = "def kernel(y: Array, n: f32):\n    y[0] = f(n) + K\n"
    function = KernelFunction.from_source(text, "kernel", {**NAMES, "f": shift, "K": 0.5})
    y = np.zeros(1, np.float32)
    function.interpret(1)(y, 1.0)
    assert y[0] == 3.5
    other = KernelFunction.from_source(text, "kernel", {**NAMES, "f": shift, "K": 0.25})
    assert other.fingerprint() != function.fingerprint()


def test_source_that_cannot_be_found():
    scope: dict[str, Any] = dict(NAMES)
    exec("def kernel(y: Array):\n    y[0] = 1.0\n", scope)
    function = KernelFunction(scope["kernel"])
    with pytest.raises(KernelError, match="from text with KernelFunction"):
        function.interpret(1)(np.zeros(1, np.float32))


def test_decorated_nested_and_multi_line_sources():
    def keep(fn: Any) -> Any:
        return fn

    class Holder:
        @KernelFunction
        @keep
        def kernel(
            x: Array,
            y: Array,
        ):
            """A docstring
            with a line that is not indented.
            """
            y[0:4] = x[0:4] + (1.0)
            if False:
                y[0] = 7.0
            # a comment at the end

    x, y = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    Holder.kernel.interpret(1)(x, y)
    np.testing.assert_array_equal(y, x + 1)


def test_doc_and_name_are_kept():
    assert KERNEL.name == KERNEL.__name__ == "kernel"
    assert repr(KERNEL) == "<kernel kernel>"
    assert KERNEL.configs == {}
    assert KernelFunction(kernel, configs={"cpu": {"B": 16}}).configs["cpu"]["B"] == 16


def test_interpreting_with_explicit_types_and_buffers():
    bits = np.zeros(4, np.uint16)
    y = bf16_array(bits)
    function = KernelFunction.from_source(
        "def kernel(x: Array, y: Array):\n    y[0:4] = x[0:4] + y[0:4] + 1.0\n", "kernel", NAMES
    )
    function.interpret(1)(np.full(4, 0.5, np.float32), y)
    np.testing.assert_array_equal(bits, 0x3FC0)  # 1.5
    with pytest.raises(KernelError, match="wants an array with memory"):
        function.interpret(1)(ArrayType.of(f32, 1), y)


def test_import_is_light():
    code = (
        "import sys, tilewright.lang; "
        "print([m for m in ('llvmlite', 'tokenizers', 'typer', 'torch', 'tilewright.lang.parse', "
        "'tilewright.lang.interpret') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
