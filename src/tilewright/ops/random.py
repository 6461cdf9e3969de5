"""Random numbers from counters: element i of an array is a function of a key and i alone.

The generator is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror & Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011). Random bits are an elementwise op of the element's index, so
they fuse with what uses them, may be computed again instead of stored, and are the same on every
target, for any number of threads and in any order.

A key is a pair of 0-d u32 nodes. :func:`split` and :func:`fold_in` derive keys; using one key twice
gives the same numbers twice.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from tilewright.dtypes import DType, bf16, f16, f32, f64, i32, i64, u32, u64
from tilewright.errors import ShapeError
from tilewright.graph import Node, Shape, const_node, scalar_node, shape_of
from tilewright.lang import fma, full, log, sin, sqrt, unroll
from tilewright.ops import elementwise, reductions, views
from tilewright.ops.kernel_functions import kernel_function
from tilewright.ops.table import OpDef, make, register
from tilewright.sizes import has_value

__all__ = [
    "Key",
    "bernoulli",
    "categorical",
    "exponential",
    "fold_in",
    "gumbel",
    "key_of",
    "normal",
    "permutation",
    "randint",
    "random_bits",
    "split",
    "threefry2x32",
    "threefry_words",
    "truncated_normal",
    "uniform",
]

Key = tuple[Node, Node]

_ROTATIONS: Final = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY: Final = 0x1BD11BDA


# --- the generator -------------------------------------------------------------------------------


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The two words that Threefry-2x32-20 makes of a key and a counter; NumPy, uint32.

    Keys and counters are pairs of numbers or arrays that broadcast.
    """
    k0, k1, x0, x1 = (np.asarray(v, np.uint32) for v in (*key, *counter))
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(_PARITY))
    with np.errstate(over="ignore"):
        x0, x1 = x0 + keys[0], x1 + keys[1]
        for i in range(20):
            by = _ROTATIONS[i % 8]
            x0 = x0 + x1
            x1 = (x1 << np.uint32(by) | x1 >> np.uint32(32 - by)) ^ x0
            if i % 4 == 3:
                n = i // 4 + 1
                x0, x1 = x0 + keys[n % 3], x1 + keys[(n + 1) % 3] + np.uint32(n)
    return x0, x1


def threefry_words(high, low, key0, key1):
    """Inline: the two words of Threefry-2x32-20 of counters (high, low), u32 that broadcast."""
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0 = high + keys[0]
    x1 = low + keys[1]
    for i in unroll(20):
        by = _ROTATIONS[i % 8]
        x0 = x0 + x1
        x1 = (x1 << by | x1 >> 32 - by) ^ x0
        if i % 4 == 3:
            n = i // 4 + 1
            x0 = x0 + keys[n % 3]
            x1 = x1 + keys[(n + 1) % 3] + n
    return x0, x1


@kernel_function
def threefry_bits(index, key0, key1, word):
    """Inline: 32 random bits per element of ``index`` (u32), counter (0, index).

    ``word`` 0 or 1 names one of the generator's two words, 2 stands for their exclusive or.
    """
    x0, x1 = threefry_words(0, index, key0, key1)
    return (x0, x1, x0 ^ x1)[word]


# sin(2 pi z) / z in powers of z**2 for |z| <= 1/4, the relative error below 6e-9
_SINE: Final = (
    6.283185273778498,
    -41.34167747571952,
    81.60223108462675,
    -76.57498870383101,
    39.71089258966771,
)


@kernel_function
def box_muller(u, v):
    """Inline: sqrt(-2 ln u) cos(2 pi v) for u in (0, 1] and v in [0, 1)."""
    z = 0.25 - abs(v - 0.5)  # cos(2 pi v) is -sin(2 pi z)
    if v.dtype.bits == 64:
        turn = sin(z * (2 * math.pi))
    else:
        square = z * z
        turn = full((), _SINE[4], f32)
        for i in unroll(4):
            turn = fma(turn, square, _SINE[3 - i])
        turn = turn * z
    return sqrt(log(u) * -2.0) * -turn


def _bits_infer(inputs: Sequence[Node], attrs: Mapping[str, Any]) -> tuple[Shape, DType]:
    index, *key = inputs
    got = ", ".join(f"{i.dtype}{shape_of(i.shape)}" for i in inputs)
    if any(i.dtype is not u32 for i in inputs) or any(k.shape != () for k in key):
        raise ShapeError(f"random_bits wants a u32 index and a key of two u32 scalars, got {got}")
    return index.shape, u32


def _bits_reference(index: np.ndarray, key0: np.ndarray, key1: np.ndarray, word: int) -> np.ndarray:
    x0, x1 = threefry2x32((key0, key1), (0, index))
    return (x0, x1, x0 ^ x1)[word]


register(
    OpDef(
        "random_bits",
        _bits_infer,
        _bits_reference,
        expression="threefry_bits({0}, {1}, {2}, {word})",
        gradient=lambda node, grad: (None, None, None),
    )
)


def _box_muller_reference(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = u.astype(np.float64), v.astype(np.float64)
    return np.asarray(np.sqrt(-2 * np.log(u)) * np.cos(2 * math.pi * v))


register(
    OpDef(
        "box_muller",
        lambda inputs, attrs: (inputs[0].shape, inputs[0].dtype),
        _box_muller_reference,
        expression="box_muller({0}, {1})",
        gradient=lambda node, grad: (None, None),
    )
)


def key_of(seed: int) -> Key:
    """The key of a seed, any integer (its lowest 64 bits count)."""
    return (
        scalar_node(seed >> 32 & 0xFFFFFFFF, u32),
        scalar_node(seed & 0xFFFFFFFF, u32),
    )


def fold_in(key: Key, data: Node | int) -> Key:
    """A new key from ``key`` and a number (a u32 scalar), one for each number."""
    index = scalar_node(data & 0xFFFFFFFF, u32) if isinstance(data, int) else data
    return _word(index, key, 0), _word(index, key, 1)


def split(key: Key, n: int = 2) -> list[Key]:
    """``n`` keys from one, which should not be used again."""
    return [fold_in(key, const_node(i, u32)) for i in range(n)]


def random_bits(shape: Sequence[int], key: Key, dtype: DType = u32) -> Node:
    """Uniform random integers over all of u32 or u64."""
    index = _index(shape)
    if dtype is u32:
        return _shaped(_word(index, key, 2), shape)
    if dtype is u64:
        return _shaped(_wide_word(index, key), shape)
    raise ShapeError(f"random_bits makes u32 or u64, got {dtype}")


def _index(shape: Sequence[int]) -> Node:
    """The number of each element, in one row."""
    count = math.prod(shape)
    if count > 1 << 32:
        raise ShapeError(
            f"random arrays have up to 2**32 elements, {tuple(shape)} has {count}: "
            "make parts with keys of split(key, n)"
        )
    return elementwise.iota((count,), 0, u32)


def _word(index: Node, key: Key, word: int) -> Node:
    return make("random_bits", index, *key, word=word)


def _wide_word(index: Node, key: Key) -> Node:
    high = elementwise.cast(_word(index, key, 0), u64)
    low = elementwise.cast(_word(index, key, 1), u64)
    return elementwise.bitwise_or(elementwise.shift_left(high, _number(32, high)), low)


def _shaped(x: Node, shape: Sequence[int]) -> Node:
    return x if len(shape) == 1 else views.reshape(x, tuple(shape))


def _number(value: bool | int | float, like: Node) -> Node:
    return const_node(value, like.dtype)


# --- distributions -------------------------------------------------------------------------------

_DIGITS: Final = {f64: 53, f32: 24, f16: 11, bf16: 8}


def _fraction(index: Node, key: Key, dtype: DType) -> Node:
    """Multiples of 2**-d in [0, 1), d the digits of ``dtype``."""
    if dtype not in _DIGITS:
        raise ShapeError(f"random fractions are floats, got {dtype}")
    digits = _DIGITS[dtype]
    bits = _wide_word(index, key) if dtype is f64 else _word(index, key, 2)
    kept = elementwise.shift_right(bits, _number(bits.dtype.bits - digits, bits))
    whole = elementwise.cast(kept, dtype)
    return elementwise.mul(whole, _number(2.0**-digits, whole))


def uniform(shape: Sequence[int], key: Key, dtype: DType = f32) -> Node:
    """Uniform in [0, 1): every multiple of 2**-24 (f64: 2**-53, f16: 2**-11, bf16: 2**-8)."""
    return _shaped(_fraction(_index(shape), key, dtype), shape)


def _inner_fraction(index: Node, key: Key, dtype: DType) -> Node:
    """In (0, 1), ends excluded: odd multiples of 2**-24 (f64: 2**-53)."""
    digits = _DIGITS[dtype] - 1
    bits = _wide_word(index, key) if dtype is f64 else _word(index, key, 2)
    kept = elementwise.shift_right(bits, _number(bits.dtype.bits - digits, bits))
    whole = elementwise.cast(kept, dtype)
    centred = elementwise.add(whole, _number(0.5, whole))
    return elementwise.mul(centred, _number(2.0**-digits, centred))


def _computed(dtype: DType) -> DType:
    """The dtype to compute a distribution in."""
    if not dtype.is_float:
        raise ShapeError(f"this distribution is over floats, got {dtype}")
    return f64 if dtype is f64 else f32


def _finished(x: Node, shape: Sequence[int], dtype: DType) -> Node:
    return _shaped(x if x.dtype is dtype else elementwise.cast(x, dtype), shape)


def normal(shape: Sequence[int], key: Key, dtype: DType = f32) -> Node:
    """Standard normal, by Box and Muller (1958): sqrt(-2 ln u) cos(2 pi v).

    u and v come from the generator's two words, so |x| is below 6.8 (f64: 8.6).
    """
    kind = _computed(dtype)
    index = _index(shape)
    if kind is f64:
        first, second = split(key)
        u, v = _wide_word(index, first), _wide_word(index, second)
    else:
        u, v = _word(index, key, 0), _word(index, key, 1)
    bits = u.dtype.bits
    # in (0, 1]: the bits as a float, moved up by half a step
    u = elementwise.cast(u, kind)
    u = elementwise.mul(elementwise.add(u, _number(0.5, u)), _number(2.0**-bits, u))
    v = elementwise.cast(elementwise.shift_right(v, _number(bits - _DIGITS[kind], v)), kind)
    v = elementwise.mul(v, _number(2.0 ** -_DIGITS[kind], v))
    return _finished(make("box_muller", u, v), shape, dtype)


def truncated_normal(
    shape: Sequence[int], key: Key, low: float = -2.0, high: float = 2.0, dtype: DType = f32
) -> Node:
    """Standard normal given that it lies in [low, high], by the inverse of the distribution."""
    if not low < high:
        raise ShapeError(f"truncated_normal wants low < high, got {low} and {high}")
    kind = _computed(dtype)
    a, b = math.erf(low / math.sqrt(2)), math.erf(high / math.sqrt(2))
    u = _inner_fraction(_index(shape), key, kind)
    u = elementwise.add(elementwise.mul(u, scalar_node(b - a, kind)), scalar_node(a, kind))
    x = elementwise.mul(elementwise.erfinv(u), _number(math.sqrt(2), u))
    x = elementwise.clip(x, scalar_node(low, kind), scalar_node(high, kind))
    return _finished(x, shape, dtype)


def exponential(shape: Sequence[int], key: Key, dtype: DType = f32) -> Node:
    """Exponential with mean 1: -ln(1 - u)."""
    u = _fraction(_index(shape), key, _computed(dtype))
    return _finished(elementwise.neg(elementwise.log1p(elementwise.neg(u))), shape, dtype)


def gumbel(shape: Sequence[int], key: Key, dtype: DType = f32) -> Node:
    """Standard Gumbel: -ln(-ln u)."""
    u = _inner_fraction(_index(shape), key, _computed(dtype))
    inner = elementwise.neg(elementwise.log(u))
    return _finished(elementwise.neg(elementwise.log(inner)), shape, dtype)


def bernoulli(shape: Sequence[int], key: Key, p: float | Node) -> Node:
    """True with probability ``p``: a number, or a float node that broadcasts to ``shape``."""
    chance = scalar_node(p, f32) if isinstance(p, (int, float)) else p
    u = uniform(shape, key, _computed(chance.dtype))
    return elementwise.lt(u, elementwise.cast(chance, u.dtype))


def categorical(logits: Node, key: Key, axis: int = -1) -> Node:
    """An index along ``axis`` (i64) with probability softmax(logits): the Gumbel-max trick."""
    noise = gumbel([_whole(n) for n in logits.shape], key, _computed(logits.dtype))
    scores = elementwise.add(elementwise.cast(logits, noise.dtype), noise)
    return reductions.argmax(scores, axis)


def _whole(n: Any) -> int:
    if not has_value(n):
        raise ShapeError(f"random arrays want sizes that are known, got {n}")
    return n


def randint(low: int, high: int, shape: Sequence[int], key: Key, dtype: DType = i32) -> Node:
    """Integers in [low, high), all equally likely but for at most (high - low) / 2**64.

    Spans above 2**32 multiply 128 random bits, and are as even as that.
    """
    if not dtype.is_integer:
        raise ShapeError(f"randint makes integers, got {dtype}")
    info = np.iinfo(dtype.storage)
    if not info.min <= low < high <= int(info.max) + 1:
        raise ShapeError(
            f"randint wants {info.min} <= low < high <= 2**{info.bits}, got {low} and {high}"
        )
    span = high - low
    index = _index(shape)
    if span == 1 << 64:
        offset = _wide_word(index, key)
    elif span <= 1 << 32:
        offset = _high_product_32(index, key, span)
    else:
        first, second = split(key)
        offset = _high_product_64(_wide_word(index, first), _wide_word(index, second), span)
    start = scalar_node(low % (1 << 64), u64)
    return _shaped(elementwise.cast(elementwise.add(offset, start), dtype), shape)


def _high_product_32(index: Node, key: Key, span: int) -> Node:
    """floor(span * v / 2**64) of a 64-bit random v, for a span of up to 2**32."""
    high = elementwise.cast(_word(index, key, 0), u64)
    low = elementwise.cast(_word(index, key, 1), u64)
    by, shift = scalar_node(span, u64), _number(32, high)
    carry = elementwise.shift_right(elementwise.mul(low, by), shift)
    # span <= 2**32 and high < 2**32: the sum stays below 2**64
    return elementwise.shift_right(elementwise.add(elementwise.mul(high, by), carry), shift)


def _high_product_64(a: Node, b: Node, span: int) -> Node:
    """floor(span * (2**64 a + b) / 2**128) of 128 random bits, for a span below 2**64."""
    by = scalar_node(span, u64)
    rest = elementwise.mul(a, by)
    carried = elementwise.add(rest, _high(b, span))
    overflow = elementwise.cast(elementwise.lt(carried, rest), u64)
    return elementwise.add(_high(a, span), overflow)


def _high(a: Node, span: int) -> Node:
    """The upper 64 bits of ``a * span``."""
    shift, mask = _number(32, a), _number(0xFFFFFFFF, a)
    b1, b0 = scalar_node(span >> 32, u64), scalar_node(span & 0xFFFFFFFF, u64)
    a1, a0 = elementwise.shift_right(a, shift), elementwise.bitwise_and(a, mask)
    low = elementwise.shift_right(elementwise.mul(a0, b0), shift)
    middle = elementwise.add(elementwise.mul(a1, b0), low)
    other = elementwise.add(elementwise.mul(a0, b1), elementwise.bitwise_and(middle, mask))
    total = elementwise.add(elementwise.mul(a1, b1), elementwise.shift_right(middle, shift))
    return elementwise.add(total, elementwise.shift_right(other, shift))


def permutation(n: int, key: Key, dtype: DType = i64) -> Node:
    """The numbers 0 to n - 1 in random order: the order of n 64-bit random keys."""
    from tilewright.ops.sorting import argsort

    order = argsort(random_bits((n,), key, u64))
    return order if order.dtype is dtype else elementwise.cast(order, dtype)
