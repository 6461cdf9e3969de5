"""8-bit products and convolutions: table entries and the choice of tiles.

Inner layout. Activations lie channels last, ``(N, *size, C')`` with C' the channels rounded up to
whole words of four (what the added bytes hold does not matter: their weights are neutral). Weights
are panels of 64 outputs: ``i32 (G, P, ceil(K / 4), 64)``, four signed bytes of k in a word, K being
taps in order and channels within. Unsigned weights are stored less 128, unsigned activations are
what ``dot4`` reads; ``zws`` and all offsets mean those shifted values.

:mod:`tilewright.ops.qlinear` builds these nodes from what ONNX says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product as indices
from math import prod
from typing import Any

import numpy as np

from tilewright.dtypes import DType, f32, i8, i32, u8, u32
from tilewright.errors import ShapeError, UnsupportedError
from tilewright.graph import Node, Shape
from tilewright.ops.calls import KernelCall
from tilewright.ops.integer_kernels import (
    LANES,
    depthwise_bytes,
    gemm_bytes,
    gemm_rows,
    gemm_slab,
    pack_panels,
    panel_sums,
)
from tilewright.ops.table import OpDef, make, register
from tilewright.ops.views import sizes_of
from tilewright.runtime.buffers import Buffer

__all__ = [
    "byte_conv",
    "byte_depthwise",
    "byte_gemm",
    "byte_panels",
    "byte_sums",
    "depthwise_words",
    "words_of",
]

Attrs = Mapping[str, Any]
Buffers = Sequence[Buffer]
RESULTS: Mapping[str, DType] = {"u8": u8, "i8": i8, "i32": i32, "f32": f32}
_BLOCK_BYTES = 128 * 1024  # of rows that a program multiplies: they stay in the L2 cache
_SLAB_BYTES = 64 * 1024  # of an input that a program copies
_MOST_BYTES = 320 * 1024  # of scratch memory


def words_of(n: int) -> int:
    """``n`` bytes in whole words of four."""
    return -(-n // 4)


def _is_byte(node: Node) -> bool:
    return node.dtype is u8 or node.dtype is i8


# --- packed weights ------------------------------------------------------------------------------


def _panels_infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    w, zw = inputs
    if not _is_byte(w) or zw.dtype is not w.dtype or len(w.shape) != 3:
        raise ShapeError(f"byte_panels wants 8-bit w (G, K, O), got {w!r} and {zw!r}")
    g, k, o = sizes_of(w)
    if zw.shape != (g, o):
        raise ShapeError(f"byte_panels wants a zero point per output {(g, o)}, got {zw.shape}")
    return (g, -(-o // LANES), words_of(k), LANES), i32


def _panels_reference(w: np.ndarray, zw: np.ndarray) -> np.ndarray:
    g, k, o = w.shape
    panels, k4 = -(-o // LANES), words_of(k)
    wide = np.zeros((g, k4 * 4, panels * LANES), np.int32)
    wide[:, :k, :o] = w
    wide[:, k:, :o] = zw[:, None, :]
    if w.dtype == np.uint8:
        wide -= 128
    cut = wide.astype(np.int8).reshape(g, k4, 4, panels, LANES).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(cut).view(np.int32)[..., 0]


def _panels_calls(node: Node, inputs: Buffers, out: Buffer) -> list[KernelCall]:
    w, zw = inputs
    g, p, k4, _ = out.shape
    return [KernelCall(pack_panels, (k4, p, g), (w, zw, out), {"SIGNED": w.dtype is i8})]


register(OpDef("byte_panels", _panels_infer, _panels_reference, calls=_panels_calls))


def byte_panels(w: Node, zw: Node) -> Node:
    """Weights w (G, K, O), i8 or u8, as panels; a k that only fills a word holds zw (G, O)."""
    return make("byte_panels", w, zw)


def _sums_reference(panels: np.ndarray) -> np.ndarray:
    signed = np.ascontiguousarray(panels)[..., None].view(np.int8)
    total = signed.sum(axis=(2, 4), dtype=np.int32)
    return total.reshape(panels.shape[0], -1)


register(
    OpDef(
        "byte_sums",
        lambda inputs, attrs: (
            (inputs[0].shape[0], sizes_of(inputs[0])[1] * LANES),
            i32,
        ),
        _sums_reference,
        calls=lambda node, inputs, out: [
            KernelCall(panel_sums, (inputs[0].shape[1], inputs[0].shape[0]), (inputs[0], out))
        ],
    )
)


def byte_sums(panels: Node) -> Node:
    """The sum of each output's weights, as they stand in the panels: i32 (G, P * 64)."""
    return make("byte_sums", panels)


def _unpacked(panels: np.ndarray, outputs: int) -> np.ndarray:
    """The signed weights of panels, int32 (G, O, K)."""
    g, p, k4, lanes = panels.shape
    signed = np.ascontiguousarray(panels)[..., None].view(np.int8).astype(np.int32)
    return signed.transpose(0, 1, 3, 2, 4).reshape(g, p * lanes, k4 * 4)[:, :outputs]


# --- results -------------------------------------------------------------------------------------


def _unsigned(x: np.ndarray) -> np.ndarray:
    """Bytes as ``dot4`` reads them, int32."""
    return x.astype(np.int32) + (128 if x.dtype == np.int8 else 0)


def finish_reference(total: np.ndarray, mult: np.ndarray, zp: np.ndarray, mode: str) -> np.ndarray:
    """Sums (wrapped to int32) as what is stored: the definition of the kernels' last step."""
    total = total.astype(np.int32)
    if mode == "i32":
        return total
    scaled = total.astype(np.float32) * mult
    if mode == "f32":
        return scaled
    info = np.iinfo(np.int8 if mode == "i8" else np.uint8)
    zero = int(zp.reshape(-1)[0])
    bounded = np.clip(scaled, np.float32(info.min - zero), np.float32(info.max - zero))
    return (np.rint(bounded).astype(np.int32) + zero).astype(info.dtype)


def _product(xu: np.ndarray, w: np.ndarray, off: np.ndarray, zws: np.ndarray) -> np.ndarray:
    """xu (G, R, K) times w (G, O, K), zero points taken off; int64."""
    total = np.einsum("grk,gok->gro", xu.astype(np.int64), w.astype(np.int64))
    rows = xu.sum(axis=2, dtype=np.int64)[:, :, None]
    return total + off.astype(np.int64)[:, None, :] - rows * zws.astype(np.int64)[:, None, :]


def _check_outputs(op: str, inputs: Sequence[Node], attrs: Attrs, groups: int) -> None:
    _, panels, off, mult, zws, zp = inputs[:6]
    if attrs["mode"] not in RESULTS:
        raise ShapeError(f"{op}: results are one of {', '.join(RESULTS)}, not {attrs['mode']}")
    outputs = attrs["outputs"]
    if panels.dtype is not i32 or sizes_of(panels)[1] != -(-outputs // LANES):
        raise ShapeError(f"{op}: {outputs} outputs do not fill the panels {panels!r}")
    for one, dtype in ((off, i32), (mult, f32), (zws, i32)):
        if one.dtype is not dtype or one.shape not in ((groups, outputs), (1, outputs)):
            raise ShapeError(f"{op} wants {dtype} ({groups}, {outputs}), got {one!r}")
    if attrs["mode"] in ("u8", "i8") and zp.dtype is not RESULTS[attrs["mode"]]:
        raise ShapeError(f"{op}: the zero point of an {attrs['mode']} result is {zp!r}")


def _per_group(buffer: Buffer, groups: int) -> Buffer:
    """(1 or G, O) as (G, O)."""
    step = buffer.strides[0] if buffer.shape[0] == groups and groups > 1 else 0
    return buffer.view((groups, buffer.shape[1]), (step, buffer.strides[1]))


def _flat(buffer: Buffer) -> Buffer:
    return buffer.view((1,), (1,))


def _words(x: Buffer, what: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a byte buffer that is read by words along its last axis."""
    steps = [s for n, s in zip(x.shape[:-1], x.strides[:-1]) if n > 1]
    if (x.strides[-1] != 1 and x.shape[-1] > 1) or any(s % 4 for s in steps) or x.shape[-1] % 4:
        raise ShapeError(f"{what} reads rows of words, got {x.shape} with strides {x.strides}")
    sizes = (*x.shape[:-1], x.shape[-1] // 4)
    return sizes, (*(s // 4 for s in x.strides[:-1]), 1)


def _rows_at_once(outputs: int) -> int:
    """Rows of a register tile: with the outputs' vectors they fill the registers."""
    if outputs >= LANES:
        return 6
    return {1: 12, 2: 12, 3: 8, 4: 6}[-(-outputs // 16)]


def _even(n: int, most: int) -> int:
    """The size of pieces, all alike but the last, when n is cut into pieces of at most ``most``."""
    return -(-n // -(-n // most))


# --- products ------------------------------------------------------------------------------------


def _gemm_infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, panels = inputs[:2]
    if not _is_byte(x) or len(x.shape) != 3 or sizes_of(x)[2] != 4 * sizes_of(panels)[2]:
        raise ShapeError(f"byte_gemm wants bytes (G, R, {panels.shape[2]} * 4), got {x!r}")
    if x.shape[0] != panels.shape[0]:
        raise ShapeError(f"byte_gemm: {x.shape[0]} groups of rows, {panels.shape[0]} of weights")
    _check_outputs("byte_gemm", inputs, attrs, sizes_of(x)[0])
    stored = attrs.get("stored", attrs["outputs"])
    if stored < attrs["outputs"] or (stored > attrs["outputs"] and x.shape[0] != 1):
        raise ShapeError(f"byte_gemm: {attrs['outputs']} outputs in {stored} places")
    return (x.shape[0], x.shape[1], stored), RESULTS[attrs["mode"]]


def _gemm_reference(
    x: Any, panels: Any, off: Any, mult: Any, zws: Any, zp: Any, **attrs: Any
) -> Any:
    total = _product(_unsigned(x), _unpacked(panels, attrs["outputs"]), off, zws)
    y = finish_reference(total, mult[:, None, :], zp, attrs["mode"])
    more = attrs.get("stored", attrs["outputs"]) - attrs["outputs"]
    return np.pad(y, [(0, 0), (0, 0), (0, more)])


def _gemm_calls(node: Node, inputs: Buffers, out: Buffer) -> list[KernelCall]:
    x, panels, off, mult, zws, zp = inputs
    groups, rows, _ = out.shape
    outputs = node.attrs["outputs"]
    y = out.view((groups, rows, outputs), out.strides)
    sizes, steps = _words(x, "byte_gemm")
    k = x.shape[2]
    mr = min(_rows_at_once(outputs), max(rows, 1))
    block = max(min(_BLOCK_BYTES // max(k, 1), 96) // mr, 1) * mr
    block = -(-_even(max(rows, 1), block) // mr) * mr
    full, tail = outputs // LANES, outputs % LANES
    blocks = -(-rows // block)
    pieces = max(min(full, 8 // max(blocks * groups, 1)), 1)
    columns = max(_even(full, -(-full // pieces)), 1) if full else 1
    consts = {
        "ROWS": block,
        "MR": mr,
        "PANELS": columns,
        "TAIL": tail,
        "SIGNED": x.dtype is i8,
        "ASYM": sizes[2] if node.attrs["asym"] else 0,
        "MODE": node.attrs["mode"],
    }
    args = (
        x.view(sizes, steps, 0, u32),
        panels,
        *(_per_group(one, groups) for one in (off, mult, zws)),
        _flat(zp),
        y,
        full,
    )
    grid = (blocks, max(-(-full // columns), 1), groups if outputs else 0)
    return [KernelCall(gemm_bytes, grid, args, consts)]


register(OpDef("byte_gemm", _gemm_infer, _gemm_reference, calls=_gemm_calls))


def byte_gemm(
    x: Node, panels: Node, off: Node, mult: Node, zws: Node, zp: Node, **attrs: Any
) -> Node:
    """Rows x (G, R, K') times panels: (G, R, outputs) in the dtype ``mode``.

    Attrs: ``outputs``; ``mode`` "u8", "i8" (requantised by mult, zero point zp), "i32" or "f32"
    (scaled by mult); ``stored``, the size of rows in memory if that is not ``outputs`` (one group);
    ``asym`` whether weights have zero points zws. off, mult, zws: (G or 1,
    outputs).
    """
    return make("byte_gemm", x, panels, off, mult, zws, zp, **attrs)


# --- convolutions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conv:
    """The sizes of a convolution of x (N, D, H, W, C') in three spatial axes."""

    kernel: tuple[int, int, int]
    strides: tuple[int, int, int]
    dilation: tuple[int, int, int]
    low: tuple[int, int, int]
    out: tuple[int, int, int]


def _conv_of(attrs: Attrs) -> _Conv:
    return _Conv(*(attrs[name] for name in ("kernel", "strides", "dilation", "low", "out")))


def _stored(outputs: int, mode: str) -> int:
    """How many channels a result has in memory."""
    return outputs if mode in ("i32", "f32") else 4 * words_of(outputs)


def _conv_infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, panels, groups = inputs[0], inputs[1], attrs["groups"]
    taps = prod(attrs["kernel"])
    if not _is_byte(x) or len(x.shape) != 5 or sizes_of(x)[4] % (4 * groups):
        raise ShapeError(f"byte_conv wants bytes (N, D, H, W, {groups} * 4 * n), got {x!r}")
    if panels.shape[0] != groups or sizes_of(panels)[2] * 4 * groups != taps * sizes_of(x)[4]:
        raise ShapeError(f"byte_conv: {x!r} in {groups} groups does not fit panels {panels!r}")
    if inputs[6].dtype is not x.dtype:
        raise ShapeError(f"byte_conv: the zero point of {x.dtype} is {inputs[6]!r}")
    _check_outputs("byte_conv", inputs, attrs, groups)
    total = _stored(groups * attrs["outputs"], attrs["mode"])
    return (x.shape[0], *attrs["out"], total), RESULTS[attrs["mode"]]


def _seen(x: np.ndarray, conv: _Conv, fill: int) -> np.ndarray:
    """What each output sees of x (N, D, H, W, C): (N, OD, OH, OW, taps, C), ``fill`` outside."""
    n, *_, c = x.shape
    out = np.full((n, *conv.out, prod(conv.kernel), c), fill, x.dtype)
    for i, tap in enumerate(indices(*map(range, conv.kernel))):
        into: list[Any] = [slice(None)]
        source: list[Any] = [slice(None)]
        axes = zip(tap, conv.out, x.shape[1:4], conv.strides, conv.dilation, conv.low)
        for t, outs, size, step, apart, low in axes:
            at = np.arange(outs) * step + t * apart - low
            good = np.flatnonzero((at >= 0) & (at < size))
            into.append(good)
            source.append(at[good])
        where: Any = (*np.ix_(np.arange(n), *into[1:]), i)
        out[where] = x[np.ix_(np.arange(n), *source[1:])]
    return out


def _conv_reference(
    x: Any, panels: Any, off: Any, mult: Any, zws: Any, zp: Any, zx: Any, **attrs: Any
) -> Any:
    conv, groups, outputs, mode = _conv_of(attrs), attrs["groups"], attrs["outputs"], attrs["mode"]
    seen = _unsigned(_seen(x, conv, int(zx.reshape(-1)[0])))
    n, taps, c = x.shape[0], seen.shape[4], x.shape[4]
    cut = seen.reshape(-1, taps, groups, c // groups).transpose(2, 0, 1, 3)
    rows = cut.reshape(groups, -1, taps * c // groups)
    total = _product(rows, _unpacked(panels, outputs), off, zws)
    y = finish_reference(total, mult[:, None, :], zp, mode)
    y = y.transpose(1, 0, 2).reshape(n, *conv.out, groups * outputs)
    more = _stored(groups * outputs, mode) - groups * outputs
    return np.pad(y, [(0, 0)] * 4 + [(0, more)])


def _conv_calls(node: Node, inputs: Buffers, out: Buffer) -> list[KernelCall]:
    x, panels, off, mult, zws, zp, zx = inputs
    attrs, conv, groups = node.attrs, _conv_of(node.attrs), node.attrs["groups"]
    outputs = attrs["outputs"]
    sizes, steps = _words(x, "byte_conv")
    c4 = sizes[4] // groups
    k4 = c4 * prod(conv.kernel)
    step = k4 + (16 if k4 % 256 == 0 else 0)
    od, oh, ow = conv.out
    slab = _slab_calls(node, inputs, out, sizes, steps)
    if slab is not None:
        return slab
    budget = min(_BLOCK_BYTES // (4 * step), 128)
    mr = _rows_at_once(outputs)
    if (budget := max(budget, min(mr, _MOST_BYTES // (4 * step) - mr))) < 1:
        raise UnsupportedError(
            f"an 8-bit convolution sums {4 * k4} products per output; at most {_MOST_BYTES // 2}"
        )
    if ow > budget:
        th, tw = 1, _even(ow, budget)
        least = ow - (-(-ow // tw) - 1) * tw
    else:
        th, tw = _even(oh, max(budget // ow, 1)), ow
        least = (oh - (-(-oh // th) - 1) * th) * ow
    across = -(-ow // tw)
    run = groups == 1 and conv.dilation[2] == 1 and conv.kernel[2] <= sizes[3]
    run = run and (steps[3] == c4 or sizes[3] == 1)
    words = x.view((*sizes[:4], groups, c4), (*steps[:4], c4, 1), 0, u32)
    lines = x.view((*sizes[:3], sizes[3] * c4), (*steps[:3], 1), 0, u32) if run else words
    plane = out.strides[1]
    y = out.view(
        (groups, out.shape[0] * od, oh * ow, outputs),
        (outputs, plane, out.strides[3], 1),
    )
    consts = {
        "OUT": conv.out,
        "ACROSS": across,
        "TH": th,
        "TW": tw,
        "MR": min(mr, least),
        "STEP": step,
        "RUN": run,
        "C4": c4,
        "KERNEL": conv.kernel,
        "STRIDES": conv.strides,
        "DILATION": conv.dilation,
        "TAIL": outputs % LANES,
        "SIGNED": x.dtype is i8,
        "ASYM": k4 if attrs["asym"] else 0,
        "MODE": attrs["mode"],
    }
    vectors = (_per_group(one, groups) for one in (off, mult, zws))
    numbers = (outputs // LANES, *conv.low)
    args = (words, lines, panels, *vectors, _flat(zx), _flat(zp), y, *numbers)
    grid = (out.shape[0] * od, -(-oh // th) * across, groups)
    return [KernelCall(gemm_rows, grid, args, consts)]


def _row_tile(width: int, outputs: int) -> int:
    """How many neighbours of a line of ``width`` share a register tile: little is made twice."""
    vectors = 4 if outputs >= LANES else -(-outputs // 16)
    sizes = {1: range(14, 5, -1), 2: range(12, 4, -1), 3: range(8, 3, -1), 4: (7, 6, 5, 4)}[vectors]
    cost = {m: -(-width // m) * (m + 0.5) for m in sizes if m <= width}
    return min(cost, key=lambda m: cost[m], default=0)


def _slab_calls(
    node: Node, inputs: Buffers, out: Buffer, sizes: Sequence[int], steps: Sequence[int]
) -> list[KernelCall] | None:
    """The convolution by a copy of the lines that a block of results sees; None where these are
    short or do not fit."""
    x, panels, off, mult, zws, zp, zx = inputs
    attrs, conv, groups = node.attrs, _conv_of(node.attrs), node.attrs["groups"]
    outputs = attrs["outputs"]
    c4 = sizes[4] // groups
    od, oh, ow = conv.out

    def seen(n: int, axis: int) -> int:
        return (n - 1) * conv.strides[axis] + (conv.kernel[axis] - 1) * conv.dilation[axis] + 1

    def nbytes(th: int, tw: int) -> int:
        return 4 * c4 * conv.kernel[0] * seen(th, 1) * (seen(tw, 2) + 16 * conv.strides[2])

    tw = ow
    while tw > 16 and (nbytes(1, tw) > _SLAB_BYTES or tw > 256):
        tw = _even(ow, tw // 2)
    if nbytes(1, tw) > _MOST_BYTES:
        return None
    least = ow - (-(-ow // tw) - 1) * tw
    mr = min(_row_tile(tw, outputs), least)
    if mr < 4 and mr < oh:
        return None
    th = 1
    while th < oh and (th + 1) * tw <= 224 and nbytes(th + 1, tw) <= _SLAB_BYTES:
        th += 1
    while th > 1 and -(-oh // th) * od * out.shape[0] * groups < 4:
        th = -(-th // 2)
    th = _even(oh, th)
    y = out.view(
        (groups, out.shape[0], od, oh, ow, outputs),
        (outputs, *out.strides[:4], 1),
    )
    consts = {
        "ACROSS": -(-ow // tw),
        "TH": th,
        "TW": tw,
        "MR": mr,
        "LINES": seen(th, 1),
        "COLUMNS": seen(tw, 2),
        "C4": c4,
        "KERNEL": conv.kernel,
        "STRIDES": conv.strides,
        "DILATION": conv.dilation,
        "TAIL": outputs % LANES,
        "SIGNED": x.dtype is i8,
        "ASYM": attrs["asym"],
        "MODE": attrs["mode"],
    }
    words = x.view((*sizes[:4], groups, c4), (*steps[:4], c4, 1), 0, u32)
    vectors = (_per_group(one, groups) for one in (off, mult, zws))
    numbers = (outputs // LANES, *conv.low)
    args = (words, panels, *vectors, _flat(zx), _flat(zp), y, *numbers)
    grid = (out.shape[0] * od, -(-oh // th) * -(-ow // tw), groups)
    return [KernelCall(gemm_slab, grid, args, consts)]


register(OpDef("byte_conv", _conv_infer, _conv_reference, calls=_conv_calls))


def byte_conv(
    x: Node, panels: Node, off: Node, mult: Node, zws: Node, zp: Node, zx: Node, **attrs: Any
) -> Node:
    """Convolution of x (N, D, H, W, C') with panels: (N, OD, OH, OW, O').

    Attrs as in :func:`byte_gemm`, ``outputs`` per group, and ``groups`` and, three numbers each,
    ``kernel``, ``strides``, ``dilation``, ``low`` (zeros in front), ``out``. Padding reads zx.
    """
    return make("byte_conv", x, panels, off, mult, zws, zp, zx, **attrs)


# --- depthwise -----------------------------------------------------------------------------------


def depthwise_words(w: np.ndarray) -> np.ndarray:
    """Weights (C, KH, KW), 8 bits, as words i32 (KW, ceil(KH / 4), C'): taps of a column."""
    c, kh, kw = w.shape
    signed = (w.astype(np.int32) - (128 if w.dtype == np.uint8 else 0)).astype(np.int8)
    wide = np.zeros((kw, words_of(kh), 4 * words_of(c), 4), np.int8)
    for i in range(kh):
        wide[:, i // 4, :c, i % 4] = signed[:, i].T
    return wide.view(np.int32)[..., 0]


def _depthwise_infer(inputs: Sequence[Node], attrs: Attrs) -> tuple[Shape, DType]:
    x, words, off, mult, zws, zp, zx = inputs
    kh, kw = attrs["kernel"]
    if not _is_byte(x) or len(x.shape) != 4 or zx.dtype is not x.dtype:
        raise ShapeError(f"byte_depthwise wants bytes (N, H, W, C'), got {x!r}")
    if words.shape != (kw, words_of(kh), x.shape[3]) or words.dtype is not i32:
        raise ShapeError(f"byte_depthwise: {x!r} does not fit the weights {words!r}")
    for one, dtype in ((off, i32), (mult, f32), (zws, i32)):
        if one.shape != (x.shape[3],) or one.dtype is not dtype:
            raise ShapeError(f"byte_depthwise wants {dtype} ({x.shape[3]},), got {one!r}")
    mode = attrs["mode"]
    if mode in ("u8", "i8") and zp.dtype is not RESULTS[mode]:
        raise ShapeError(f"byte_depthwise: the zero point of an {mode} result is {zp!r}")
    return (x.shape[0], *attrs["out"], x.shape[3]), RESULTS[mode]


def _depthwise_reference(
    x: Any, words: Any, off: Any, mult: Any, zws: Any, zp: Any, zx: Any, **attrs: Any
) -> Any:
    (kh, kw), mode = attrs["kernel"], attrs["mode"]
    steps, apart, low, out = (attrs[n] for n in ("strides", "dilation", "low", "out"))
    conv = _Conv((1, kh, kw), (1, *steps), (1, *apart), (0, *low), (1, *out))
    seen = _unsigned(_seen(x[:, None], conv, int(zx.reshape(-1)[0])))[:, 0].astype(np.int64)
    w = np.ascontiguousarray(words)[..., None].view(np.int8)  # (KW, KH / 4, C, 4)
    w = w.transpose(1, 3, 0, 2).reshape(-1, kw, x.shape[3])[:kh].reshape(kh * kw, -1)
    total = np.einsum("nhwtc,tc->nhwc", seen, w.astype(np.int64))
    total = total + off.astype(np.int64) - seen.sum(axis=3) * zws.astype(np.int64)
    return finish_reference(total, mult, zp, mode)


def _depthwise_calls(node: Node, inputs: Buffers, out: Buffer) -> list[KernelCall]:
    x, words, off, mult, zws, zp, zx = inputs
    attrs = node.attrs
    (kh, kw), (oh, ow), c = attrs["kernel"], attrs["out"], x.shape[3]
    if x.strides[-1] != 1:
        raise ShapeError(f"byte_depthwise reads rows of bytes, got strides {x.strides}")
    most = 4
    t = next((t for t in (4, 7, 8, 5, 6, 3) if ow % t == 0), min(most, ow))
    lanes = 64 if c > 32 else 32 if c > 16 else 16
    width = (ow - 1) * attrs["strides"][1] + (kw - 1) * attrs["dilation"][1] + 1
    while lanes > 16 and words_of(kh) * (width + t * attrs["strides"][1]) * lanes * 4 > _MOST_BYTES:
        lanes //= 2
    if t * lanes > 16 * 16:
        lanes = 32 if t <= 8 else 16
    if words_of(kh) * (width + t * attrs["strides"][1]) * lanes * 4 > _MOST_BYTES:
        raise UnsupportedError(f"an 8-bit depthwise convolution of lines of {width} columns")
    consts = {
        "CB": lanes,
        "T": t,
        "WIDTH": width,
        "LOW": tuple(attrs["low"]),
        "KERNEL": attrs["kernel"],
        "STRIDES": attrs["strides"],
        "DILATION": attrs["dilation"],
        "SIGNED": x.dtype is i8,
        "ASYM": attrs["asym"],
        "MODE": attrs["mode"],
    }
    args = (x, words, off, mult, zws, _flat(zx), _flat(zp), out)
    grid = (x.shape[0] * oh, -(-c // lanes))
    return [KernelCall(depthwise_bytes, grid, args, consts)]


register(OpDef("byte_depthwise", _depthwise_infer, _depthwise_reference, calls=_depthwise_calls))


def byte_depthwise(
    x: Node, words: Node, off: Node, mult: Node, zws: Node, zp: Node, zx: Node, **attrs: Any
) -> Node:
    """A convolution of every channel by itself, x (N, H, W, C') to (N, OH, OW, C').

    words: :func:`depthwise_words`; off, mult, zws: (C',). Attrs ``kernel``, ``strides``,
    ``dilation``, ``low``, ``out`` (two numbers each), ``mode``, ``asym``.
    """
    return make("byte_depthwise", x, words, off, mult, zws, zp, zx, **attrs)
