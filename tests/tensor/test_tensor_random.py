"""Random tensors: streams, seeds, distributions."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.tensor.random import Generator

N = 20_000


def test_a_seed_is_a_stream() -> None:
    one, two = Generator(7), Generator(7)
    a, b = (tw.random.normal((5,), generator=g) for g in (one, one))
    assert a.tolist() != b.tolist()
    assert tw.random.normal((5,), generator=two).tolist() == a.tolist()
    assert tw.random.normal((5,), generator=two).tolist() == b.tolist()
    one.seed(7)
    assert tw.random.normal((5,), generator=one).tolist() == a.tolist()
    assert tw.random.normal((5,), generator=Generator(8)).tolist() != a.tolist()


def test_the_state_can_be_kept() -> None:
    generator = Generator(1)
    tw.random.uniform((3,), generator=generator)
    state = tw.asarray(generator.state, copy=True)
    wanted = tw.random.uniform((3,), generator=generator).tolist()
    generator.state.assign(state)
    assert tw.random.uniform((3,), generator=generator).tolist() == wanted


def test_a_draw_does_not_depend_on_when_it_is_computed() -> None:
    a, b = Generator(3), Generator(3)
    lazy = [tw.random.normal((4,), generator=a) for _ in range(3)]
    eager = [tw.random.normal((4,), generator=b).realize() for _ in range(3)]
    for x, y in zip(reversed(lazy), reversed(eager)):
        assert x.tolist() == y.tolist()


def test_default_generator() -> None:
    tw.random.seed(11)
    first = tw.random.uniform((3,)).tolist()
    tw.random.seed(11)
    assert tw.random.uniform((3,)).tolist() == first
    assert first == tw.random.uniform((3,), generator=Generator(11)).tolist()


@pytest.mark.parametrize("dtype", [tw.float32, tw.float64, tw.float16, tw.bfloat16], ids=str)
def test_real_numbers(dtype: object) -> None:
    g = Generator(0)
    u = tw.random.uniform((N,), low=-1, high=3, dtype=dtype, generator=g)
    assert u.dtype is dtype
    v = u.numpy().astype(np.float64)
    assert v.min() >= -1
    assert v.max() <= 3
    assert abs(v.mean() - 1) < 0.05
    z = tw.random.normal((N,), mean=2, std=3, dtype=dtype, generator=g).numpy()
    assert abs(z.astype(np.float64).mean() - 2) < 0.1
    assert abs(z.astype(np.float64).std() - 3) < 0.1
    t = tw.random.truncated_normal((N,), std=2, dtype=dtype, generator=g).numpy()
    assert np.abs(t).max() <= 4.0
    assert (
        abs(tw.random.exponential((N,), dtype=dtype, generator=g).numpy().mean(dtype=float) - 1)
        < 0.05
    )


def test_integers_and_choices() -> None:
    g = Generator(0)
    dice = tw.random.randint(1, 7, (N,), generator=g)
    assert dice.dtype is tw.int64
    counts = np.bincount(dice.numpy(), minlength=7)[1:]
    assert (np.abs(counts / N - 1 / 6) < 0.02).all()
    assert abs(tw.random.bernoulli(0.3, (N,), generator=g).numpy().mean() - 0.3) < 0.02
    p = tw.asarray([0.0, 1.0, 1.0])
    assert tw.random.bernoulli(p, generator=g).tolist() == [False, True, True]
    order = tw.random.permutation(100, generator=g).numpy()
    assert sorted(order) == list(range(100))
    logits = tw.broadcast_to(tw.log(tw.asarray([0.1, 0.2, 0.7])), (N, 3))
    picked = np.bincount(tw.random.categorical(logits, generator=g).numpy(), minlength=3) / N
    np.testing.assert_allclose(picked, [0.1, 0.2, 0.7], atol=0.02)
    with pytest.raises(TypeError, match="floating"):
        tw.random.normal((2,), dtype=tw.int32)
    with pytest.raises(TypeError, match="integer"):
        tw.random.randint(0, 2, (2,), dtype=tw.float32)


def test_compiled_draws_differ_from_call_to_call() -> None:
    g = Generator(5)
    wanted = Generator(5)

    @tw.compile
    def draw(x: tw.Tensor) -> tw.Tensor:
        return x + tw.random.uniform((4,), generator=g)

    zero = tw.zeros((4,)).realize()
    for _ in range(4):
        assert draw(zero).tolist() == tw.random.uniform((4,), generator=wanted).tolist()
    assert tw.random.uniform((4,), generator=g).tolist() == (
        tw.random.uniform((4,), generator=wanted).tolist()
    )
