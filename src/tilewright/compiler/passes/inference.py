"""What is done to a graph whose weights do not change before it is compiled, in order.

Passes marked *bits* change the last bits of results and *constant* ones need to know what never
changes; neither is for ``tilewright.compile`` and dynamic use, where a compiled step gives the bits
of separate ops. There, as here, :func:`tilewright.compiler.static.build` itself runs what keeps
bits and pays everywhere: :mod:`.epilogue`.

==================  ==============  ===============================================================
pass                kind            what it does
==================  ==============  ===============================================================
fuse_quantized      constant, bits  quantise, compute, dequantise becomes integer kernels
keep_channels_last  exact           integer images keep their channels last
fold_scales         constant, bits  scales and shifts after convolutions go into their weights
blocked_images      constant, exact images in blocks of channels between convolutions
literals            constant        constants of one element become numbers written into kernels
tidy                exact           drops, merges casts, reshapes, permutations, identities
simplify            bits            small powers; divisions in norms, softmax and GELU
widen               bits            16-bit elementwise chains in f32, rounded once at their end
find_attention      bits            softmax(q k^T) v in its parts becomes flash attention
narrow              bits            ``compute=bf16``: operands of products rounded to bf16
fold                constant        what depends on constants alone is computed once
share               exact           common subexpressions once
pack                constant        constant right operands of products packed once
==================  ==============  ===============================================================

Norms and activations need no pass: their parts are reductions and elementwise work over the same
rows, which one kernel (:mod:`tilewright.compiler.fusion`) or the product before them does. Nor do
permutations around a product: it reads operands, and others its result, with any strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.compiler.passes.algebra import simplify, widen
from tilewright.compiler.passes.attention import find_attention
from tilewright.compiler.passes.channels import keep_channels_last
from tilewright.compiler.passes.constants import fold, literals, pack
from tilewright.compiler.passes.layout import blocked_images, fold_scales
from tilewright.compiler.passes.narrow import narrow
from tilewright.compiler.passes.qdq import fuse_quantized
from tilewright.compiler.passes.tidy import share, tidy
from tilewright.compiler.realize import realize
from tilewright.dtypes import DType, bf16
from tilewright.graph import Node
from tilewright.ops import table
from tilewright.ops.views import copy

__all__ = ["for_inference"]


def for_inference(
    roots: Sequence[Node],
    dynamic: Callable[[Node], bool],
    compute: DType | None = None,
    packed: dict[Any, tuple[Any, Node]] | None = None,
    compute_now: Callable[[list[Node]], object] = realize,
) -> list[Node]:
    """New nodes for ``roots``, in their order.

    Args:
        dynamic: whether a leaf changes from run to run.
        compute: bf16: what products, attention and convolutions round their operands to.
        packed: what was packed for products before; a session keeps it for its next programs.
        compute_now: gives nodes that depend on constants alone their values.
    """
    roots = fuse_quantized(roots, dynamic)
    roots = keep_channels_last(roots)
    roots = fold_scales(roots, dynamic)
    roots = blocked_images(roots, dynamic, compute)
    roots = tidy(literals(roots, dynamic))
    roots = tidy(simplify(roots))
    roots = tidy(widen(roots))
    roots = tidy(find_attention(roots))
    if compute is bf16:
        roots = tidy(narrow(roots, dynamic))
    fold(roots, dynamic, compute_now)
    roots = pack(share(roots), dynamic, {} if packed is None else packed)
    return [_in_order(root) for root in roots]


def _in_order(root: Node) -> Node:
    """A result whose axes a view has turned round, copied by a kernel: whoever asks for the array
    would have to copy it otherwise."""
    node = root
    while node.value is None and not node.is_leaf and node.op != "part":
        if node.op == "permute":
            return copy(root)
        if table.get(node.op).view is None:
            break
        node = node.inputs[0]
    return root
