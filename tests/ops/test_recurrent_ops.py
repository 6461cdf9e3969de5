"""Recurrent layers against their references; one launch or many, any threads: the same bits."""

import numpy as np
import pytest

from tilewright.compiler.realize import realize
from tilewright.compiler.static import build
from tilewright.errors import ShapeError
from tilewright.graph import data_node, topological
from tilewright.ops import recurrent, recurrent_kernels
from tilewright.ops.table import evaluate_nodes
from tilewright.runtime.buffers import from_array
from tilewright.runtime.launch import default_target, pool_of

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
STATES = {"rnn": 1, "lstm": 2, "gru": 1}


def leaves(op, t, b, h, dtype=np.float32, lens=False, extra=False, seed=0):
    rng = np.random.default_rng(seed)

    def made(*shape):
        return data_node(from_array(rng.standard_normal(shape).astype(dtype)))

    given = [made(t, b, GATES[op] * h), made(GATES[op] * h, h)]
    given += [made(b, h) for _ in range(STATES[op])]
    more = {}
    if extra and op == "lstm":
        more["peep"] = made(3, h)
    if extra and op == "gru":
        more["bias"] = made(h)
    if lens:
        values = rng.integers(0, t + 1, b).astype(np.int32)
        more["lens"] = data_node(from_array(values))
    return given, more


def build_op(op, given, more, **attrs):
    return getattr(recurrent, op)(*given, **more, **attrs)


def check(outs, tol=2e-5):
    order = topological(outs)
    want = evaluate_nodes(order, {})
    want = [want[o] for o in outs]
    got = [b.numpy() for b in realize(list(outs))]
    for one, other in zip(got, want):
        np.testing.assert_allclose(one, other, rtol=tol, atol=tol)
    return got


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((4, 1, 1), "plain"),
        ((3, 2, 17), "lens"),
        ((3, 2, 17), "reverse"),
        ((5, 5, 33), "all"),
        ((3, 3, 210), "plain"),
        ((3, 3, 210), "all"),
    ],
)
def test_layers_are_their_references(op, size, settings):
    lens, reverse = settings in ("lens", "all"), settings in ("reverse", "all")
    given, more = leaves(op, *size, lens=lens, extra=settings == "all")
    more |= {"clip": 0.7, "reverse": reverse} if settings == "all" else {"reverse": reverse}
    # wide states would saturate or run away: halve the weights
    given[1] = data_node(from_array(given[1].value.numpy() / np.float32(size[2]) ** 0.5))
    check(build_op(op, given, more))


@pytest.mark.parametrize("op", GATES)
def test_double_precision(op):
    given, more = leaves(op, 3, 3, 9, np.float64)
    check(build_op(op, given, more), 1e-12)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("size", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_empty_axes(op, size):
    given, more = leaves(op, *size)
    outs = build_op(op, given, more)
    found = realize(list(outs))
    assert [b.shape for b in found[1:]] == [size[1:]] * STATES[op]
    if not size[0]:
        np.testing.assert_array_equal(found[1].numpy(), given[2].value.numpy())


@pytest.mark.parametrize("name", sorted(recurrent.ACTIVATIONS))
def test_activations(name):
    given, more = leaves("rnn", 3, 2, 5)
    check(build_op("rnn", given, more, activation=(name, 0.3, 0.6)))


@pytest.mark.parametrize("op", GATES)
def test_the_same_bits_however_it_is_launched(op, monkeypatch):
    """One launch for all steps or one each, cut by units or not, on one thread or three."""
    results = []
    given, more = leaves(op, 4, 3, 70, lens=True)
    for small in (0, 1 << 30):
        monkeypatch.setattr(recurrent_kernels, "_SMALL", small)
        for threads in (1, 3):
            outs = list(build_op(op, given, more))
            program = build(outs, default_target(), pool_of(threads), None)
            results.append(run(program, outs))
    # rows do not see each other
    one = [data_node(from_array(g.value.numpy()[:, 1:2].copy())) if i == 0 else g
           for i, g in enumerate(given)]  # fmt: skip
    one[2:] = [data_node(from_array(g.value.numpy()[1:2].copy())) for g in given[2:]]
    alone = build_op(op, one, {"lens": data_node(from_array(more["lens"].value.numpy()[1:2]))})
    alone = [b.numpy() for b in realize(list(alone))]
    for other in results[1:]:
        for a, b in zip(results[0], other):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(results[0][0][:, 1:2], alone[0])


def run(program, outs):
    from tilewright.compiler.fusion import pending
    from tilewright.compiler.realize import located
    from tilewright.runtime.memory import take

    owners, addresses = [], []
    for node in pending(outs):
        if node.value is not None:
            owners.append(node.value.owner)
            addresses.append(node.value.pointer)
    for nbytes in program.output_bytes:
        owners.append(take(nbytes))
        addresses.append(owners[-1].pointer)
    arena = take(max(program.arena_bytes, 1))
    addresses.append(arena.pointer)
    program.run(addresses, [])
    return [located(o, addresses, owners).numpy().copy() for o in program.outputs]


def test_what_does_not_fit_is_refused():
    given, _ = leaves("lstm", 2, 2, 3)
    with pytest.raises(ShapeError, match="lstm wants"):
        recurrent.lstm(given[0], given[1], given[2], data_node(from_array(np.zeros((2, 4), "f4"))))
    with pytest.raises(ShapeError, match="activation is one of"):
        recurrent.rnn(*leaves("rnn", 2, 2, 3)[0], activation=("sine", 0, 0))
