"""Kernel errors: what was wrong, what is wanted, the user's line, and the caret's column."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tilewright import lang
from tilewright.dtypes import f32, i32
from tilewright.errors import KernelError
from tilewright.lang import KernelFunction
from tilewright.lang.ir import ArrayType

HEADER = (
    "def kernel(x: Array, y: Array, ids: Array, n: i64, B: Const = 8):\n    i = program_id(0)\n"
)


def namespace() -> dict:
    names = {name: getattr(lang, name) for name in lang.__all__}
    names["HOST"] = np.zeros(3, np.float32)
    names["helper"] = helper
    return names


def helper(v):
    return v + undefined_thing  # noqa: F821


def build(body: str) -> lang.KernelFunction:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return KernelFunction.from_source(HEADER + lines, "kernel", namespace())


def error_of(body: str) -> str:
    kernel = build(body)
    args = (ArrayType.of(f32, 2), ArrayType.of(f32, 1), ArrayType.of(i32, 1), 3)
    with pytest.raises(KernelError) as caught:
        kernel.ir(kernel.signature(args))
    return str(caught.value)


# body, what the message says, the source at the caret
CASES = [
    ("v = foo + 1", "'foo' is not defined", "foo + 1"),
    ("v = exq(y[0:8])", "did you mean 'exp'", "exq(y"),
    ("v = w\nw = 1", "'w' is used before it is assigned", "w"),
    ("y[0:8] = y[0:8] + x[0, 0:7]", "shapes (8,) and (7,) do not broadcast", "y[0:8] + x"),
    ("y[0:8] = where(y[0:8] > 0, y[0:4], 0.0)", "(8,) and (4,) and () do not broadcast", "where("),
    ("y[0:8] = zeros((9,), f32)", "shapes (9,) and (8,)", "y[0:8]"),
    ("y[0:8] = zeros((2, 8), f32)", "does not fit a window of (8,)", "y[0:8]"),
    ("v = y[0:n]", "length of a window must be a compile-time constant", "0:n"),
    ("v = y[i : i * 2]", "must be a compile-time constant", "i : i * 2"),
    ("v = y[i : i]", "at least one element long, got length 0", "i : i"),
    ("v = y[8 : 2]", "got length -6", "8 : 2"),
    ("v = y[0:8:n]", "step must be a compile-time integer", "0:8:n"),
    ("v = y[0:8:-1]", "step must be positive", "0:8:-1"),
    ("v = y[:]", "axis 0 of y has no size known at compile time", "y[:]"),
    ("v = y[i:]", "no size known at compile time", "y[i:]"),
    ("v = x[0]", "x has 2 axes, 1 are indexed", "x[0]"),
    ("v = y[0, 1]", "y has 1 axes, 2 are indexed", "y[0, 1]"),
    ("v = y[1.5]", "wanted an integer, got 1.5", "y[1.5]"),
    ("v = y[y[0:8]]", "a gather wants an integer tile, got an f32[8] tile", "y[y[0:8]]"),
    ("v = y[None, 0:8]", "takes no None index", "y[None, 0:8]"),
    ("v = x[arange(4), 0:8, arange(4)]", "x has 2 axes, 3 are indexed", "x[arange"),
    ("v = y[0:8][n]", "a tile is indexed by compile-time integers", "y[0:8][n]"),
    ("v = y[0:8][8]", "index 8 is outside a tile axis of 8", "y[0:8][8]"),
    ("v = y + 1.0", "is memory, not a tile", "y + 1.0"),
    ("v = 1.0 * y", "is memory, not a tile", "1.0 * y"),
    ("v = exp(y)", "got an array<f32[?]:1>", "exp(y)"),
    ("B = 4", "'B' is a Const parameter and cannot be assigned", "B = 4"),
    ("for B in range(3):\n    pass", "'B' is a Const parameter", "B in range"),
    ("B += 1", "'B' is a Const parameter", "B += 1"),
    ("v = zeros((n,), f32)", "a tile's shape must be known at compile time", "zeros((n,), f32)"),
    ("v = zeros((0,), f32)", "positive integers", "zeros((0,)"),
    ("v = zeros((4,), 3)", "wanted a dtype (f32, i8, ...), got 3", "zeros((4,), 3)"),
    ("v = arange(n)", "arange wants integers known at compile time", "arange(n)"),
    ("v = arange(3, 3)", "is empty", "arange(3, 3)"),
    ("while n:\n    pass", "use `for ... in range(...)`", "while n"),
    ("try:\n    pass\nfinally:\n    pass", "`try` is not part", "try:"),
    ("with n:\n    pass", "`with` is not part", "with n"),
    ("import os", "import outside of the kernel", "import os"),
    ("v = [j for j in unroll(3)]", "use `for ... in unroll(...)`", "[j for j"),
    ("v = (j for j in unroll(3))", "generator expressions are not part", "(j for j"),
    ("v = f'{n}'", "f-strings are not part", "f'{n}'"),
    ("v = (w := 3)", "`:=` is not part", "w := 3"),
    ("v: f32 = 0.0", "make a typed scalar with cast(0, f32)", "v: f32"),
    ("del i", "`del` is not part", "del i"),
    ("global n2", "a kernel cannot assign globals", "global n2"),
    ("class A:\n    pass", "classes are defined outside of kernels", "class A"),
    ("match n:\n    case 1:\n        pass", "`match` is not part", "match n"),
    ("v = 1j", "complex numbers are not part", "1j"),
    ("return n", "a kernel returns nothing", "def kernel"),
    ("v = helper(y[0:8])", "'undefined_thing' is not defined", None),
    ("v = HOST[0:2]", "'HOST' is an array outside the kernel: pass it as an argument", "HOST[0:2]"),
    ("v = (lambda a: a)(1, 2)", "takes 1 arguments, got 2", "(lambda a: a)(1, 2)"),
    ("v = (lambda a: a)()", "is called without 'a'", "(lambda a: a)()"),
    ("v = dot(y[0:8], x[0:8, 0:8])", "dot wants tiles with two axes, got an f32[8] tile", "dot("),
    ("v = dot(x[0:4, 0:8], x[0:4, 0:8])", "the inner sizes differ", "dot("),
    ("v = dot4(zeros((8,), i32), y[0:8], y[0:8])", "dot4 wants (i32, i32|u32, i32|u32)", "dot4("),
    ("v = sum(y[0:8], axis=1)", "axis 1 is out of range for a tile with 1 axes", "sum("),
    ("v = max(y[0:8], 0)", "write max(x, axis=0) or maximum(x, 0)", "max("),
    ("v = y[0:8] & 1", "& wants integers or bools", "y[0:8] & 1"),
    ("v = y[0:8] << 1", "<< wants integers", "y[0:8] << 1"),
    ("v = ~y[0:8]", "~ wants an integer or a bool", "~y[0:8]"),
    ("v = ids[0:8] ** -1", "to a negative power", "ids[0:8] ** -1"),
    ("v = ids[0:8] + 5_000_000_000", "does not fit i32", "ids[0:8] + 5"),
    ("v = y[0:8].to(i8) + 300", "300 does not fit i8 (-128..127)", "y[0:8].to"),
    ("ids[0:8] = y[0:8]", "would truncate it: say so with .to(i32)", "ids[0:8] = y"),
    ("ids[0:8] = 1.5", "1.5 is not an integer, wanted i32", "ids[0:8] = 1.5"),
    ("v = bitcast(y[0:8], i64)", "f32 has 32 bits, i64 has 64", "bitcast("),
    ("v = y[0:8].reshape(3, 3)", "has 8 elements, (3, 3) has another count", "y[0:8].reshape"),
    ("v = x[0:2, 0:8].foo", "a tile has no attribute 'foo'", "x[0:2, 0:8].foo"),
    ("v = x.strides", "an array has no attribute 'strides'", "x.strides"),
    ("v = y.shape[2]", "axis 2 is out of range for an array with 1 axes", "y.shape[2]"),
    ("if y[0:8] > 0:\n    pass", "`if` wants a scalar, got a bool[8] tile", None),
    ("v = y[0:8] > 0 and n", "use & on tiles", "y[0:8] > 0 and n"),
    ("v = n or i", "compare an i64 scalar first, x != 0", "n or i"),
    ("y[0] = 10 ** 400", "a constant of 401 digits is too large", "y[0]"),
    ("v = y[0:8] + 1e300", "1e+300 is too large for f32", "y[0:8] + 1e300"),
    ("v = 0 < y[0:8] < 1", "write (a < b) & (b < c)", "0 < y[0:8] < 1"),
    ("v = not y[0:8]", "`not` wants a scalar", "not y"),
    ("v = int(n)", "int() wants a compile-time value, got an i64 scalar: use .to(i64)", "int(n)"),
    ("v = open('x')", "cannot be called in a kernel", "open('x')"),
    ("v = f32(1)", "f32 is a dtype, not a function: cast(x, f32)", "f32(1)"),
    ("v = n()", "cannot be called", "n()"),
    ("v = 1 + 'a'", "unsupported operand", "1 + 'a'"),
    ("v = 1 // 0", "division", "1 // 0"),
    ("v = (1, 2)[5]", "index out of range", "(1, 2)[5]"),
    ("v = (1, 2)[n]", "known only at run time", "(1, 2)[n]"),
    ("for j in (1, 2):\n    pass", "a loop runs over range(...) or unroll(...)", "(1, 2)"),
    ("for j in unroll(n):\n    pass", "make the bound a Const parameter", "unroll(n)"),
    ("for j in range(0, 8, 0):\n    pass", "range wants a positive step", "range(0, 8, 0)"),
    ("for j in range(y[0]):\n    pass", "range wants integer scalars", "range(y[0])"),
    ("for j in range(4):\n    v = j\nw = v", "assigned only inside a runtime loop", "v"),
    ("for j in range(4):\n    return", "return inside a runtime loop", "for j"),
    ("for j in range(4):\n    break", "break and continue work in unroll", "for j"),
    ("if n > 1:\n    v = 1.0\nw = v", "in one branch of a runtime `if` only", "v"),
    (
        "if n > 1:\n    v = zeros((4,), f32)\nelse:\n    v = zeros((5,), f32)\ny[0:4] = v",
        "f32[4] tile in one branch of a runtime `if` and an f32[5] tile in the other",
        "if n > 1",
    ),
    (
        "t = zeros((8,), f16)\nfor j in range(4):\n    t = t + y[0:8]\ny[0:8] = t",
        "'t' changes its type in the loop: it is an f16[8] tile before and an f32[8] tile after",
        "t = t + y",
    ),
    (
        "t = 0.0\nfor j in range(4):\n    t = t + y[0:8]\ny[0:8] = t",
        "'t' changes its type in the loop",
        "t = t + y",
    ),
    (
        "t = 1.0\nfor j in range(4):\n    t = t * 0.5\ny[0] = t",
        "give it a dtype before the loop, t = cast(1.0, f32)",
        "t = t * 0.5",
    ),
    ("i[0] = 1", "only arrays can be stored into, this is an i64 scalar", "i[0]"),
    ("a, b = 1, 2, 3", "3 values for 2 names", "a, b"),
    ("a, b = y[0:2]", "cannot be unpacked", "a, b"),
    ("assert B == 9, 'B is nine'", "assertion failed: B is nine", "assert B"),
    ("assert n == 9", "assert wants a compile-time condition", "assert n"),
    ("raise ValueError('no')", "the kernel raises: no", "raise Value"),
    ("v = load(1.0, fill=2)", "load wants a subscript of an array written in place", "load("),
    ("w = y[0:8]\nv = load(w + 1, fill=2)", "written in place", "load("),
    ("w = y[0:8]\nu = w + 1\nv = load(w, fill=2)", "written in place", "load("),
    ("v = load(ids[0:8], fill=0.5)", "fill 0.5 is not a value of i32", "load("),
    ("v = y[0:8].to(7)", "wanted a dtype", "y[0:8].to(7)"),
    ("v = program_id(3)", "a grid has the axes 0, 1 and 2, got 3", "program_id(3)"),
    ("v = concatenate(y[0:8])", "concatenate wants a tuple of tiles", "concatenate("),
    ("v = associative_scan(lambda a, b: (a, b), y[0:8])", "returns 2 values, wanted 1", None),
    ("v = transpose(x[0:2, 0:4], (0, 0))", "(0, 0) is not an order of 2 axes", "transpose("),
    ("def f(a):\n    return f(a)\nv = f(1)", "recursion must end at compile time", None),
]


@pytest.mark.parametrize(("body", "message", "caret"), CASES, ids=[c[0] for c in CASES])
def test_message_and_caret(body, message, caret):
    text = error_of(body)
    assert message in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert re.match(r"  .*:\d+$", lines[at - 2])
    if caret is not None:
        column = lines[at].index("^")
        assert lines[at - 1][column:].startswith(caret), text


def test_line_number():
    text = error_of("v = 1\n\nw = v + nothing")
    assert ":5" in text.splitlines()[1]  # two lines of header, the third of the body


def test_error_in_an_inline_function_shows_both_places():
    text = error_of("v = helper(y[0:8])")
    assert "return v + undefined_thing" in text
    assert "called from" in text
    assert "v = helper(y[0:8])" in text
    assert "test_errors.py" in text


def test_caret_counts_characters_not_bytes():
    text = error_of("v = 'ääää' if 0 else nothing")
    lines = text.splitlines()
    column = lines[-1].index("^")
    assert lines[-2][column:].startswith("nothing")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1.0, 2, 3), {}, "'x': wanted an array (np.ndarray or a tilewright buffer), got float"),
        ((), {}, "called without its argument 'x'"),
        ((np.zeros(3, "f"),), {"eps": 1.0}, "called without its Const argument 'B'"),
        ((np.zeros(3, "f"), 1.0, 3, 4), {}, "takes 3 arguments (x, eps, B), got 4"),
        ((np.zeros(3, "f"), 1.0), {"B": 3, "C": 4}, "no parameter 'C' (it has x, eps, B)"),
        ((np.zeros(3, "f"), 1.0, 3), {"B": 3}, "got 'B' twice"),
        ((np.zeros(3, "f"), "no", 3), {}, "'eps': wanted a number of f32, got 'no' (str)"),
        ((np.zeros(3, "c8"), 1.0, 3), {}, "arrays of complex64 are not supported"),
        ((np.zeros(3, ">f4"), 1.0, 3), {}, "arrays of >f4 are not supported"),
        ((np.zeros(3, "f"), 1.0, np.zeros(3)), {}, "cannot be known at compile time"),
    ],
)
def test_wrong_arguments(args, kwargs, message):
    text = "def kernel(x: Array, eps: f32, B: Const):\n    x[0] = eps\n"
    kernel = KernelFunction.from_source(text, "kernel", namespace())
    with pytest.raises(KernelError) as caught:
        kernel.interpret(1)(*args, **kwargs)
    assert message in str(caught.value)


def test_integer_scalars_are_checked():
    kernel = KernelFunction.from_source(
        "def kernel(x: Array, n: i32):\n    x[0] = n\n", "kernel", namespace()
    )
    x = np.zeros(1, np.float32)
    kernel.interpret(1)(x, np.int64(5))
    assert x[0] == 5
    for bad, message in [(1.5, "wanted a number of i32"), (1 << 31, "does not fit i32")]:
        with pytest.raises(KernelError, match=message):
            kernel.interpret(1)(x, bad)


def test_a_parameter_wants_an_annotation():
    with pytest.raises(KernelError, match="'x' wants an annotation: Array, Arrays, Const or"):
        KernelFunction.from_source("def kernel(x):\n    pass\n", "kernel", {})


def test_captured_array_is_refused():
    host = np.zeros(3, np.float32)

    def kernel(y: lang.Array):
        y[0] = host[0]

    with pytest.raises(KernelError, match="'host' is an array outside the kernel"):
        KernelFunction(kernel).interpret(1)(np.zeros(3, np.float32))


def test_tile_functions_outside_a_kernel():
    with pytest.raises(KernelError, match="only inside a kernel"):
        lang.program_id(0)


def test_grid_is_checked():
    kernel = build("pass")
    for grid in [(1, 2, 3, 4), (-1,), ()]:
        with pytest.raises(KernelError, match="a grid is one to three sizes"):
            kernel.interpret(grid)


def test_a_source_file_changed_after_import(tmp_path, monkeypatch):
    """The text at the function's line is no longer the function: said so, not parsed."""
    import importlib
    import linecache

    head = "from tilewright import kernel\nfrom tilewright.lang import Array, program_id\n"
    body = "@kernel\ndef first(y: Array):\n    y[program_id(0)] = 1.0\n"
    path = tmp_path / "changing_kernels.py"
    path.write_text(head + body)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("changing_kernels")
    path.write_text(head + "x = 1\ny = 2\nz = 3\n" + body)
    linecache.checkcache()
    with pytest.raises(KernelError, match="changed after it was imported"):
        module.first.inspect(np.zeros(1, np.float32))
