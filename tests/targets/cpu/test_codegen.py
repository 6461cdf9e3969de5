"""LLVM text to object code."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tilewright.errors import CompileError
from tilewright.targets.cpu.codegen import compile_object
from tilewright.targets.cpu.loader import process_loader
from tilewright.targets.cpu.machine import Machine

HOST = Machine.detect_host()


def multiply_add(name: str) -> str:
    return f"""
define void @{name}(ptr %out, ptr %x) {{
  %a = load float, ptr %x
  %p = getelementptr float, ptr %x, i64 1
  %b = load float, ptr %p
  %q = getelementptr float, ptr %x, i64 2
  %c = load float, ptr %q
  %ab = fmul float %a, %b
  %abc = fadd float %ab, %c
  store float %abc, ptr %out
  ret void
}}
"""


def call(data: bytes, symbol: str, *arrays: np.ndarray) -> None:
    address = process_loader().load(data, symbol)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(arrays))(address)
    function(*(a.ctypes.data for a in arrays))


def test_multiply_then_add_is_not_contracted() -> None:
    x = np.float32(1 + 2**-12)
    values = np.array([x, x, -(x * x)], np.float32)  # rounded product: the sum is exactly 0
    out = np.array([7], np.float32)
    call(compile_object(multiply_add("contracted"), HOST).data, "contracted", out, values)
    assert out[0] == 0


def test_assembly_and_optimised_text_on_demand() -> None:
    code = compile_object(multiply_add("shown"), HOST)
    assert "shown:" in code.asm()
    assert "define void @shown" in code.optimised()
    assert "fmuladd" not in code.optimised()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("define void @f() {\n  ret i32 0\n}", r"(?s)LLVM rejects.*2 \|   ret i32 0"),
        ("define void @f() {\n  frobnicate\n}", r"(?s)LLVM rejects.*frobnicate"),
        ("define i32 @f(i32 %x) {\na:\n  br label %b\nb:\n  ret i32 %y\n}", "LLVM rejects"),
    ],
)
def test_bad_text_shows_the_line(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_object(text, HOST)


def test_compiling_is_deterministic_and_parallel() -> None:
    texts = [multiply_add(f"f{i}") for i in range(12)]
    alone = [compile_object(text, HOST).data for text in texts]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda text: compile_object(text, HOST).data, texts))
    assert together == alone


def test_c_library_calls_resolve() -> None:
    text = """
declare float @fmaf(float, float, float)
declare ptr @memset(ptr, i32, i64)
define void @library(ptr %out, ptr %x) {
  %a = load float, ptr %x
  %y = call float @fmaf(float %a, float %a, float %a)
  store float %y, ptr %out
  %p = getelementptr float, ptr %out, i64 1
  %r = call ptr @memset(ptr %p, i32 0, i64 8)
  ret void
}
"""
    out = np.ones(4, np.float32)
    call(compile_object(text, HOST).data, "library", out, np.array([3], np.float32))
    assert out.tolist() == [12, 0, 0, 1]


def test_constant_tables_are_reachable() -> None:
    text = """
@table = internal constant [4 x double] [double 1.5, double 2.5, double 3.5, double 4.5]
define void @lookup(ptr %out, ptr %index) {
  %i = load i64, ptr %index
  %p = getelementptr double, ptr @table, i64 %i
  %v = load double, ptr %p
  store double %v, ptr %out
  ret void
}
"""
    out = np.zeros(1)
    call(compile_object(text, HOST).data, "lookup", out, np.array([2], np.int64))
    assert out[0] == 3.5


def test_unresolved_symbol_and_garbage_are_errors() -> None:
    text = """
declare void @no_such_thing()
define void @g() {
  call void @no_such_thing()
  ret void
}
"""
    with pytest.raises(CompileError, match=r"cannot link g"):
        process_loader().load(compile_object(text, HOST).data, "g")
    with pytest.raises(CompileError, match=r"cannot link f"):
        process_loader().load(b"not an object file", "f")
    good = compile_object(multiply_add("present"), HOST).data
    with pytest.raises(CompileError, match=r"cannot link absent"):
        process_loader().load(good, "absent")
    call(good, "present", np.zeros(1, np.float32), np.zeros(3, np.float32))  # still works
