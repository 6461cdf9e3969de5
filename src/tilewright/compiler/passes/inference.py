"""What is done to a graph whose weights do not change before it is compiled, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.compiler.passes.channels import keep_channels_last
from tilewright.compiler.passes.layout import blocked_images, fold_scales
from tilewright.compiler.passes.qdq import fuse_quantized
from tilewright.dtypes import DType
from tilewright.graph import Node
from tilewright.ops import table
from tilewright.ops.views import copy

__all__ = ["for_inference"]


def for_inference(
    roots: Sequence[Node], dynamic: Callable[[Node], bool], compute: DType | None = None
) -> list[Node]:
    """New nodes for ``roots``; what depends on no dynamic leaf is the caller's to fold.

    Args:
        dynamic: whether a leaf changes from run to run.
        compute: bf16: what convolutions round their operands to.
    """
    roots = fuse_quantized(roots, dynamic)
    roots = keep_channels_last(roots)
    roots = fold_scales(roots, dynamic)
    roots = blocked_images(roots, dynamic, compute)
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
