"""Fixtures of the format tests."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ggml() -> ctypes.CDLL:
    """The ggml library inside llama-cpp-python; tests skip where that is not installed."""
    llama_cpp = pytest.importorskip("llama_cpp")
    found = sorted((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base*"))
    if not found:
        pytest.skip("llama-cpp-python comes without a ggml library")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,  # type
        ctypes.c_void_p,  # float32 source
        ctypes.c_void_p,  # destination
        ctypes.c_int64,  # first value
        ctypes.c_int64,  # rows
        ctypes.c_int64,  # values per row
        ctypes.c_void_p,  # importance matrix
    ]
    return library
