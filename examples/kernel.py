"""A kernel of one's own: GELU fused with a bias, beside NumPy, down to the assembly.

python examples/kernel.py [--asm]
"""

from __future__ import annotations

import sys
import time

import numpy as np

import tilewright
from tilewright.lang import Array, Const, program_id, tanh


@tilewright.kernel
def bias_gelu(x: Array, bias: Array, y: Array, BLOCK: Const):
    """y = gelu(x + bias), the tanh form; a piece of a row per program instance."""
    row, j = program_id(0), program_id(1) * BLOCK
    v = x[row, j : j + BLOCK] + bias[j : j + BLOCK]
    y[row, j : j + BLOCK] = 0.5 * v * (1.0 + tanh(0.7978845608 * (v + 0.044715 * v * v * v)))


def reference(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The same in NumPy: a pass over memory for each operation."""
    v = x + bias
    gelu = 0.5 * v * (1 + np.tanh(0.7978845608 * (v + 0.044715 * v * v * v)))
    return gelu.astype(np.float32)


def main(arguments: list[str]) -> None:
    """Check, time, and show what the machine runs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 4096), np.float32)
    bias = rng.standard_normal(4096, np.float32)
    y = np.empty_like(x)

    def launch() -> None:
        bias_gelu[512, 8](x, bias, y, BLOCK=512)

    launch()
    np.testing.assert_allclose(y, reference(x, bias), rtol=1e-4, atol=1e-6)
    for name, run in (("tilewright", launch), ("NumPy", lambda: reference(x, bias))):
        start = time.perf_counter()
        for _ in range(5):
            run()
        print(f"{name:10}  {(time.perf_counter() - start) / 5 * 1e3:7.2f} ms")
    if "--asm" in arguments:
        print(bias_gelu.inspect(x, bias, y, BLOCK=512).asm)


if __name__ == "__main__":
    main(sys.argv[1:])
