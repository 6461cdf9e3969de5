"""Random calls of the standard's functions, run on tilewright and on array-api-strict.

:data:`CASES` has a strategy of calls for every function of the Array API standard 2024.12; a call
is made of NumPy arrays, numbers and dtype names, so that both libraries get the same.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import array_api_strict as strict
import numpy as np
from hypothesis import strategies as st

import tilewright as tw

strict.set_array_api_strict_flags(api_version="2024.12")

BOOL = ("bool",)
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTS = SIGNED + UNSIGNED
FLOATS = ("float32", "float64")
NUMBERS = INTS + FLOATS
ALL = BOOL + NUMBERS

SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -3.5, np.inf, -np.inf, np.nan, 1e-30, 1e30, 3.0)


@dataclass(frozen=True)
class DType:
    """A dtype by name, to be looked up in each library."""

    name: str


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def _elements(dtype: str, low: float | None = None, high: float | None = None) -> Any:
    if dtype == "bool":
        return st.booleans()
    if dtype in FLOATS:
        width = 32 if dtype == "float32" else 64
        if low is not None or high is not None:
            return st.floats(low, high, width=width, allow_subnormal=False)
        return st.sampled_from(SPECIAL) | st.floats(-1000, 1000, width=width, allow_subnormal=False)
    info = np.iinfo(dtype)
    least = max(info.min, -(2**62) if low is None else int(low))
    most = min(info.max, 2**62 if high is None else int(high))
    return st.integers(max(least, -9), min(most, 9)) | st.integers(least, most)


@st.composite
def shapes(draw: Any, min_dims: int = 0, max_dims: int = 3, min_side: int = 0) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(min_side, 4), min_size=min_dims, max_size=max_dims)))


@st.composite
def arrays(
    draw: Any,
    dtypes: tuple[str, ...] = ALL,
    shape: Any = None,
    low: float | None = None,
    high: float | None = None,
) -> np.ndarray:
    dtype = draw(st.sampled_from(dtypes))
    sizes = draw(shapes() if shape is None else shape)
    count = int(np.prod(sizes))
    values = draw(st.lists(_elements(dtype, low, high), min_size=count, max_size=count))
    return np.array(values, dtype).reshape(sizes)


@st.composite
def broadcastable(draw: Any, count: int = 2) -> list[tuple[int, ...]]:
    full = draw(shapes())
    out = []
    for _ in range(count):
        kept = full[draw(st.integers(0, len(full))) :]
        out.append(tuple(1 if n and draw(st.integers(0, 3)) == 0 else n for n in kept))
    return out


def _promotable(a: str, b: str) -> bool:
    try:
        strict.result_type(getattr(strict, a), getattr(strict, b))
    except TypeError:
        return False
    return True


@st.composite
def pairs(
    draw: Any, dtypes: tuple[str, ...], low: float | None = None, high: float | None = None
) -> Call:
    """Two operands of dtypes that promote, one of them perhaps a number."""
    first = draw(st.sampled_from(dtypes))
    second = draw(st.sampled_from([d for d in dtypes if _promotable(first, d)]))
    one, two = draw(broadcastable())
    x = draw(arrays((first,), st.just(one), low, high))
    if draw(st.integers(0, 4)) == 0:
        number = draw(_elements(first, low, high))
        return Call((number, x) if draw(st.booleans()) else (x, number))
    return Call((x, draw(arrays((second,), st.just(two), low, high))))


@st.composite
def axes_of(draw: Any, rank: int, several: bool = True, none: bool = True) -> Any:
    options = [st.integers(-rank, rank - 1)] if rank else []
    if several and rank:
        options.append(
            st.lists(st.integers(0, rank - 1), unique=True, min_size=1, max_size=rank).map(tuple)
        )
    if none or not options:
        options.append(st.none())
    return draw(st.one_of(options))


@st.composite
def reductions(
    draw: Any, dtypes: tuple[str, ...], *, empty: bool = True, several: bool = True, **extra: Any
) -> Call:
    finite = {"low": -100, "high": 100} if extra.pop("finite", False) else {}
    x = draw(arrays(dtypes, shapes(min_side=0 if empty else 1), **finite))
    kwargs = {"axis": draw(axes_of(x.ndim, several)), "keepdims": draw(st.booleans())}
    kwargs |= {k: draw(v) for k, v in extra.items()}
    return Call((x,), kwargs)


def unary(dtypes: tuple[str, ...], low: float | None = None, high: float | None = None) -> Any:
    return arrays(dtypes, None, low, high).map(lambda x: Call((x,)))


@dataclass(frozen=True)
class Case:
    """How a function is called, and how closely the results agree (0: the same bits)."""

    calls: Any
    tolerance: float = 0.0


CLOSE = 4e-6  # float32, relative; float64 is held to the square of it

CASES: dict[str, Case] = {}


def _add(names: str, calls: Any, tolerance: float = 0.0) -> None:
    for name in names.split():
        CASES[name] = Case(calls, tolerance)


_add("acos acosh asin asinh atan atanh cos cosh exp expm1 log log10 log1p log2 sin sinh tan tanh",
     unary(FLOATS), CLOSE)  # fmt: skip
_add("sqrt isnan isinf isfinite ceil floor round trunc sign square abs negative positive",
     unary(FLOATS))  # fmt: skip
_add("reciprocal", unary(FLOATS), CLOSE)
_add("signbit real", unary(FLOATS))
_add("conj imag", unary(FLOATS))  # of real numbers, which the oracle refuses: NumPy's meaning
_add("logical_not", unary(BOOL))
_add("bitwise_invert", unary(BOOL + INTS))
_add("add subtract multiply maximum minimum", pairs(NUMBERS))
_add("divide", pairs(FLOATS))
_add("floor_divide", pairs(FLOATS, -100, 100) | pairs(INTS, 1, 100))  # specials: not the oracle's
_add("remainder", pairs(FLOATS) | pairs(INTS, 1, 100))
_add("pow", pairs(FLOATS) | pairs(INTS, 0, 3), CLOSE)
_add("atan2 hypot logaddexp", pairs(FLOATS), CLOSE)
_add("copysign nextafter", pairs(FLOATS))
_add("equal not_equal", pairs(ALL))
_add("less less_equal greater greater_equal", pairs(NUMBERS))
_add("logical_and logical_or logical_xor", pairs(BOOL))
_add("bitwise_and bitwise_or bitwise_xor", pairs(INTS) | pairs(BOOL))
_add("bitwise_left_shift bitwise_right_shift", pairs(INTS, 0, 7))


@st.composite
def _clip(draw: Any) -> Call:
    x = draw(arrays(NUMBERS))
    dtype = str(x.dtype)
    low, high = sorted(draw(st.tuples(*[_elements(dtype, -20, 20)] * 2)))
    low = draw(st.sampled_from([None, low, np.asarray(low, dtype)]))
    return Call((x,), {"min": low, "max": draw(st.sampled_from([None, high]))})


_add("clip", _clip())


@st.composite
def _where(draw: Any) -> Call:
    first = draw(st.sampled_from(ALL))
    second = draw(st.sampled_from([d for d in ALL if _promotable(first, d)]))
    a, b, c = draw(broadcastable(3))
    return Call((
        draw(arrays(BOOL, st.just(a))),
        draw(arrays((first,), st.just(b))),
        draw(arrays((second,), st.just(c))),
    ))  # fmt: skip


_add("where", _where())

# reductions
_add("sum", reductions(INTS, dtype=st.just(None) | st.just(DType("int64")))
     | reductions(FLOATS, finite=True), CLOSE)  # fmt: skip
_add("prod", reductions(INTS) | reductions(FLOATS, finite=True), CLOSE)
_add("mean std", reductions(FLOATS, finite=True), 2e-5)
_add("var", reductions(FLOATS, finite=True, correction=st.sampled_from([0, 1, 0.5])), 2e-5)
_add("max min", reductions(NUMBERS, empty=False))
_add("any all", reductions(ALL))
_add("count_nonzero", reductions(ALL))
_add("argmax argmin", reductions(NUMBERS, empty=False, several=False))


@st.composite
def _scans(draw: Any) -> Call:
    # of dtypes that keep: sums of specials differ in nothing but NaN
    x = draw(arrays(INTS) | arrays(FLOATS, None, -100, 100))
    kwargs = {"include_initial": draw(st.booleans())}
    if x.ndim == 0:
        x = x.reshape(1)
    if x.ndim != 1 or draw(st.booleans()):
        kwargs["axis"] = draw(st.integers(-x.ndim, x.ndim - 1))
    return Call((x,), kwargs)


_add("cumulative_sum cumulative_prod", _scans(), 2e-5)


@st.composite
def _diff(draw: Any) -> Call:
    x = draw(arrays(NUMBERS, shapes(min_dims=1)))
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    kwargs = {"axis": axis, "n": draw(st.integers(0, 2))}
    for name in ("prepend", "append"):
        if draw(st.booleans()):
            sizes = list(x.shape)
            sizes[axis] = draw(st.integers(0, 2))
            kwargs[name] = draw(arrays((str(x.dtype),), st.just(tuple(sizes))))
    return Call((x,), kwargs)


_add("diff", _diff())

# creation
_dtype = st.sampled_from(NUMBERS).map(DType)
_any_dtype = st.sampled_from(ALL).map(DType)


@st.composite
def _arange(draw: Any) -> Call:
    kind = st.integers(-20, 20) if draw(st.booleans()) else st.floats(-20, 20, width=32)
    start, stop = draw(kind), draw(kind)
    step = draw(st.sampled_from([1, 2, -1, -3, 0.5]))
    args = draw(st.sampled_from([(start,), (start, stop), (start, stop, step)]))
    exact = all(isinstance(v, int) for v in args)
    kwargs = {"dtype": DType(draw(st.sampled_from(FLOATS + ("int64", "int8") * exact)))}
    return Call(args, kwargs)


_add("arange", _arange(), CLOSE)


@st.composite
def _asarray(draw: Any) -> Call:
    x = draw(arrays(ALL, None, -100, 100))
    kind = {"b": st.just("bool"), "f": st.sampled_from(FLOATS)}.get(
        x.dtype.kind, st.just(str(x.dtype)) | st.sampled_from(FLOATS)
    )
    if draw(st.booleans()):
        return Call((x,), {"copy": draw(st.sampled_from([None, True]))})
    return Call((x.tolist(),), {"dtype": DType(draw(kind))})


_add("asarray", _asarray())
_add("zeros ones", st.builds(lambda s, d: Call((s,), {"dtype": d}), shapes(), _any_dtype))
_add("empty", st.builds(lambda s, d: Call((s,), {"dtype": d}), shapes(), _any_dtype))
_like = st.builds(lambda x, d: Call((x,), {"dtype": d}), arrays(), st.none() | _any_dtype)
_add("zeros_like ones_like empty_like", _like)
_add("full", st.builds(lambda s, v, d: Call((s, v), {"dtype": DType(d)}), shapes(),
                       st.integers(0, 100), st.sampled_from(NUMBERS)))  # fmt: skip
_add("full_like", st.builds(lambda x, v: Call((x, v)), arrays(NUMBERS), st.integers(0, 100)))
_add("eye", st.builds(lambda n, m, k, d: Call((n, m), {"k": k, "dtype": d}), st.integers(0, 4),
                      st.none() | st.integers(0, 4), st.integers(-5, 5), _dtype))  # fmt: skip
_add("linspace", st.builds(lambda a, b, n, e, d: Call((a, b, n), {"endpoint": e, "dtype": d}),
                           st.floats(-50, 50, width=32), st.floats(-50, 50, width=32),
                           st.integers(0, 9), st.booleans(),
                           st.sampled_from(FLOATS).map(DType)), CLOSE)  # fmt: skip


@st.composite
def _meshgrid(draw: Any) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    vectors = [
        draw(arrays((dtype,), st.tuples(st.integers(0, 3)))) for _ in range(draw(st.integers(1, 3)))
    ]
    return Call(tuple(vectors), {"indexing": draw(st.sampled_from(["xy", "ij"]))})


_add("meshgrid", _meshgrid())
_add("tril triu", st.builds(lambda x, k: Call((x,), {"k": k}), arrays(NUMBERS, shapes(2)),
                            st.integers(-4, 4)))  # fmt: skip

# dtypes
_add("astype", st.builds(lambda x, d, c: Call((x, DType(d)), {"copy": c}),
                         arrays(BOOL + INTS) | arrays(FLOATS, None, 0, 100),
                         st.sampled_from(ALL), st.booleans()))  # fmt: skip
_add("can_cast", st.builds(lambda a, b: Call((DType(a), DType(b))), st.sampled_from(NUMBERS),
                           st.sampled_from(NUMBERS)))  # fmt: skip
_add("finfo", st.sampled_from(FLOATS).map(lambda d: Call((DType(d),))))
_add("iinfo", st.sampled_from(INTS).map(lambda d: Call((DType(d),))))
_KINDS = ("bool", "signed integer", "unsigned integer", "integral", "real floating",
          "complex floating", "numeric")  # fmt: skip
_add("isdtype", st.builds(lambda d, k: Call((DType(d), k)), st.sampled_from(ALL),
                          st.sampled_from(_KINDS) | st.lists(st.sampled_from(_KINDS), min_size=1,
                                                             max_size=3).map(tuple)
                          | _any_dtype))  # fmt: skip


@st.composite
def _result_type(draw: Any) -> Call:
    first = draw(st.sampled_from(ALL))
    second = draw(st.sampled_from([d for d in ALL if _promotable(first, d)]))
    x = draw(arrays((first,), st.just((2,))))
    return Call(draw(st.sampled_from([(x, DType(second)), (DType(first), DType(second)), (x,)])))


_add("result_type", _result_type())

# shapes
_add("broadcast_arrays", broadcastable(3).flatmap(
    lambda s: st.tuples(*[arrays(ALL, st.just(n)) for n in s])).map(Call))  # fmt: skip


@st.composite
def _broadcast_to(draw: Any) -> Call:
    small, _ = draw(broadcastable())
    x = draw(arrays(ALL, st.just(small)))
    grown = tuple(draw(st.integers(0, 3)) if n == 1 else n for n in x.shape)
    return Call((x, (*draw(shapes(max_dims=1)), *grown)))


_add("broadcast_to", _broadcast_to())


@st.composite
def _joined(draw: Any, stack: bool) -> Call:
    base = draw(shapes(min_dims=0 if stack else 1))
    axis = draw(st.integers(-len(base) - 1, len(base)) if stack
                else st.integers(-len(base), len(base) - 1))  # fmt: skip
    dtype = draw(st.sampled_from(ALL))
    xs = []
    for _ in range(draw(st.integers(1, 3))):
        sizes = list(base)
        if not stack:
            sizes[axis] = draw(st.integers(0, 3))
        second = draw(st.sampled_from([d for d in ALL if _promotable(dtype, d)]))
        if any(not _promotable(second, str(x.dtype)) for x in xs) or xs:
            second = dtype
        xs.append(draw(arrays((second,), st.just(tuple(sizes)))))
    if not stack and draw(st.integers(0, 4)) == 0:
        return Call((xs,), {"axis": None})
    return Call((xs,), {"axis": axis})


_add("concat", _joined(False))
_add("stack", _joined(True))


@st.composite
def _by_axis(draw: Any, name: str) -> Call:
    x = draw(arrays(ALL, shapes(min_dims=1)))
    rank = x.ndim
    if name == "expand_dims":
        return Call((x,), {"axis": draw(st.integers(-rank - 1, rank))})
    if name == "flip":
        return Call((x,), {"axis": draw(axes_of(rank))})
    if name == "permute_dims":
        return Call((x, tuple(draw(st.permutations(range(rank))))))
    if name == "moveaxis":
        taken = draw(st.lists(st.integers(0, rank - 1), unique=True, max_size=rank).map(tuple))
        placed = tuple(draw(st.permutations(range(rank))))[: len(taken)]
        return Call((x, taken, placed))
    if name == "roll":
        axis = draw(axes_of(rank))
        shift = draw(st.integers(-5, 5))
        return Call((x, (shift,) * len(axis) if isinstance(axis, tuple) else shift), {"axis": axis})
    if name == "squeeze":
        at = draw(st.integers(0, rank))
        return Call(
            (np.expand_dims(x, at),), {"axis": at - rank - 1 if draw(st.booleans()) else at}
        )
    if name == "unstack":
        return Call((x,), {"axis": draw(st.integers(-rank, rank - 1))})
    if name == "repeat":
        axis = draw(axes_of(rank, several=False))
        count = draw(st.integers(0, 3))
        n = x.size if axis is None else x.shape[axis]
        many = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64)
        return Call((x, count if draw(st.booleans()) else many), {"axis": axis})
    if name == "tile":
        return Call((x, draw(st.lists(st.integers(0, 2), max_size=4).map(tuple))))
    if name == "reshape":
        sizes = list(x.shape)
        draw(st.randoms(use_true_random=False)).shuffle(sizes)
        if sizes and x.size and draw(st.booleans()):
            sizes[0] = -1
        return Call((x, tuple(sizes)), {"copy": draw(st.sampled_from([None, True]))})
    raise AssertionError(name)


_BY_AXIS = "expand_dims flip permute_dims moveaxis roll squeeze unstack repeat tile reshape"
for _name in _BY_AXIS.split():
    _add(_name, _by_axis(_name))

# positions and order


@st.composite
def _take(draw: Any, along: bool) -> Call:
    x = draw(arrays(ALL, shapes(min_dims=1, min_side=1)))
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    ids = st.integers(-n, n - 1) if along else st.integers(0, n - 1)
    if along:
        sizes = list(x.shape)
        sizes[axis] = draw(st.integers(0, 4))
        count = int(np.prod(sizes))
    else:
        sizes = [count := draw(st.integers(0, 4))]
    values = draw(st.lists(ids, min_size=count, max_size=count))
    return Call((x, np.array(values, np.int64).reshape(sizes)), {"axis": axis})


_add("take", _take(False))
_add("take_along_axis", _take(True))
_add("sort argsort", st.builds(
    lambda x, d: Call((x,), {"descending": d, "axis": -1 if x.ndim < 2 else 0}),
    arrays(INTS, shapes(min_dims=1)) | arrays(FLOATS, shapes(min_dims=1), -100, 100),
    st.booleans()))  # fmt: skip
_add("nonzero", unary(ALL).map(lambda c: Call((np.atleast_1d(c.args[0]),))))


@st.composite
def _searchsorted(draw: Any) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    x = np.sort(draw(arrays((dtype,), st.tuples(st.integers(0, 6)), -50, 50)))
    values = draw(arrays((dtype,), None, -60, 60))
    kwargs: dict[str, Any] = {"side": draw(st.sampled_from(["left", "right"]))}
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(x))))
        shuffled = np.empty_like(x)
        for i, o in enumerate(order):
            shuffled[o] = x[i]
        return Call((shuffled, values), kwargs | {"sorter": np.array(order, np.int64)})
    return Call((x, values), kwargs)


_add("searchsorted", _searchsorted())
_add("unique_all unique_counts unique_inverse unique_values", unary(ALL))

# products


@st.composite
def _matmul(draw: Any) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    m, k, n = (draw(st.integers(0, 4)) for _ in range(3))
    batch = draw(broadcastable())
    left = draw(st.sampled_from([(k,), (*batch[0], m, k)]))
    right = draw(st.sampled_from([(k,), (*batch[1], k, n)]))
    a = draw(arrays((dtype,), st.just(left), -10, 10))
    return Call((a, draw(arrays((dtype,), st.just(right), -10, 10))))


_add("matmul", _matmul(), 2e-5)


@st.composite
def _tensordot(draw: Any) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    shared = draw(shapes(max_dims=2))
    left, right = draw(shapes(max_dims=1)), draw(shapes(max_dims=1))
    a = draw(arrays((dtype,), st.just((*left, *shared)), -10, 10))
    b = draw(arrays((dtype,), st.just((*shared, *right)), -10, 10))
    n = len(shared)
    axes = draw(st.sampled_from([n, (tuple(range(len(left), len(left) + n)), tuple(range(n)))]))
    return Call((a, b), {"axes": axes})


_add("tensordot", _tensordot(), 2e-5)


@st.composite
def _vecdot(draw: Any) -> Call:
    dtype = draw(st.sampled_from(NUMBERS))
    one, two = draw(broadcastable())
    n = draw(st.integers(0, 4))
    a = draw(arrays((dtype,), st.just((*one, n)), -10, 10))
    return Call((a, draw(arrays((dtype,), st.just((*two, n)), -10, 10))))


_add("vecdot", _vecdot(), 2e-5)
_add("matrix_transpose", unary(ALL).map(lambda c: Call((np.atleast_2d(c.args[0]),))))
_add("from_dlpack", unary(ALL))
_add("__array_namespace_info__", st.just(Call(())))


# running both


def _given(value: Any, xp: Any) -> Any:
    """``value`` as library ``xp`` wants it."""
    if isinstance(value, np.ndarray):
        return xp.asarray(value.copy())
    if isinstance(value, DType):
        return getattr(xp, value.name)
    if isinstance(value, (list, tuple)):
        return type(value)(_given(v, xp) for v in value)
    return value


def run(xp: Any, name: str, call: Call) -> Any:
    """The result of function ``name`` of library ``xp``."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if xp is strict and name in ("conj", "imag"):
            return strict.asarray(getattr(np, name)(call.args[0]))
        kwargs = {k: _given(v, xp) for k, v in call.kwargs.items()}
        return getattr(xp, name)(*[_given(v, xp) for v in call.args], **kwargs)


def agree(got: Any, wanted: Any, tolerance: float, what: str) -> None:
    """Raise AssertionError unless the results of the two libraries are the same.

    What ``empty`` has in it is nobody's business.
    """
    if isinstance(wanted, strict._array_object.Array):
        array = np.asarray(wanted._array)
        assert isinstance(got, tw.Tensor), f"{what}: {type(got)}"
        assert got.dtype is getattr(tw, str(array.dtype)), f"{what}: {got.dtype}, not {array.dtype}"
        assert got.shape == array.shape, f"{what}: shape {got.shape}, not {array.shape}"
        if not what.startswith("empty"):
            _same_values(got.numpy(), array, tolerance, what)
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted), f"{what}: {len(got)} results, not {len(wanted)}"
        for i, (g, w) in enumerate(zip(got, wanted)):
            agree(g, w, tolerance, f"{what}[{i}]")
    elif hasattr(wanted, "bits"):
        for name in ("bits", "max", "min", "eps", "smallest_normal"):
            assert getattr(got, name, None) == getattr(wanted, name, None), f"{what}.{name}"
    elif isinstance(wanted, strict._dtypes.DType):
        assert got is getattr(tw, str(wanted._np_dtype)), f"{what}: {got}, not {wanted}"
    elif isinstance(wanted, bool):
        assert got is wanted, f"{what}: {got}, not {wanted}"


def _same_values(got: np.ndarray, wanted: np.ndarray, tolerance: float, what: str) -> None:
    if not tolerance or wanted.dtype.kind != "f":
        same = np.array_equal(got, wanted, equal_nan=wanted.dtype.kind == "f")
        same = same and (
            wanted.dtype.kind != "f"
            or np.array_equal(
                np.signbit(got) | np.isnan(got), np.signbit(wanted) | np.isnan(wanted)
            )
        )
        assert same, f"{what}:\n{got!r}\nis not\n{wanted!r}"
        return
    relative = tolerance if wanted.dtype == np.float32 else tolerance**2
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(
            got, wanted, rtol=relative, atol=relative * 1e-3, equal_nan=True, err_msg=what
        )
