"""The op table and the kernels behind it, one file per family.

Importing the package registers every family; ``tilewright.ops.table`` looks entries up.
"""

from tilewright.ops import (
    autodiff,
    cache_ops,
    conv,
    elementwise,
    flash,
    flash_packed,
    gemm,
    images,
    indexing,
    linear,
    movement,
    norm,
    pool,
    random,
    reductions,
    resize,
    scans,
    selective_scan,
    sorting,
    unique_rows,
    views,
    windows,
)

__all__ = [
    "autodiff",
    "cache_ops",
    "conv",
    "elementwise",
    "flash",
    "flash_packed",
    "gemm",
    "images",
    "indexing",
    "linear",
    "movement",
    "norm",
    "pool",
    "random",
    "reductions",
    "resize",
    "scans",
    "selective_scan",
    "sorting",
    "unique_rows",
    "views",
    "windows",
]
