"""Random tensor graphs: elementwise chains, reductions, views and pieces over odd shapes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilewright.dtypes import f32, i32
from tilewright.errors import ShapeError
from tilewright.graph import Node, const_node, data_node, scalar_node
from tilewright.ops import elementwise as ew
from tilewright.ops import reductions, views
from tilewright.runtime.buffers import from_array

LARGEST = 60_000


@dataclass(frozen=True)
class Sizes:
    """What shapes are drawn from.

    Attributes:
        sizes, ranks: of the first arrays.
        start, largest: elements that these, and results, have at most.
        axes: that a result has at most.
    """

    sizes: tuple[int, ...] = (1, 2, 3, 5, 8, 17, 40, 70, 130)
    ranks: tuple[int, ...] = (1, 2, 2, 3, 3, 4)
    start: int = 20_000
    largest: int = LARGEST
    axes: int = 5


USUAL = Sizes()
EMPTY = Sizes(sizes=(0, 1, 3, 17), ranks=(1, 2, 3))
MANY_AXES = Sizes(sizes=(1, 2, 2, 3, 4), ranks=(6, 6, 7), axes=8)
HUGE = Sizes((1, 3, 1000, 40_000, 600_000), (1, 2, 2), start=700_000, largest=3_000_000)


class _Maker:
    def __init__(self, seed: int, sizes: Sizes) -> None:
        self.sizes = sizes
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.pool: list[Node] = []

    def leaf(self, shape: tuple[int, ...]) -> Node:
        """An array of this shape, some of them transposed, reversed or spread in memory."""
        array = self.rng.standard_normal(shape).astype(np.float32)
        kind = self.random.random()
        if kind < 0.2 and len(shape) > 1:
            array = np.asfortranarray(array)
        elif kind < 0.35 and shape:
            array = array[::-1]
        elif kind < 0.45 and shape:
            array = np.repeat(array, 2, axis=-1)[..., ::2]
        return data_node(from_array(array))

    def pick(self) -> Node:
        return self.random.choice(self.pool)

    def axis(self, x: Node) -> int:
        if not x.shape:
            raise ShapeError("no axis")
        return self.random.randrange(len(x.shape))

    def axes(self, x: Node) -> tuple[int, ...]:
        self.axis(x)
        count = self.random.randint(1, len(x.shape))
        return tuple(sorted(self.random.sample(range(len(x.shape)), count)))

    def slice(self, x: Node) -> Node:
        axis = self.axis(x)
        n = x.shape[axis]
        if not n:
            raise ShapeError("nothing to take")
        starts, sizes, steps = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
        if self.random.random() < 0.4:
            starts[axis], steps[axis] = n - 1, -1
        else:
            steps[axis] = self.random.choice([1, 2])
            starts[axis] = self.random.randrange(n)
            sizes[axis] = max(1, (n - starts[axis]) // steps[axis])
        return views.slice_(x, tuple(starts), tuple(sizes), tuple(steps))

    def joined(self, x: Node) -> Node:
        shape = list(x.shape)
        i = self.random.randrange(max(len(shape) - 1, 1))
        shape[i : i + 2] = [math.prod(shape[i : i + 2])]
        return views.reshape(x, tuple(shape) if x.shape else ())

    def unit(self, x: Node) -> Node:
        shape = list(x.shape)
        shape.insert(self.random.randint(0, len(shape)), 1)
        return views.reshape(x, tuple(shape))

    def shuffled(self, x: Node) -> Node:
        order = list(range(len(x.shape)))
        self.random.shuffle(order)
        return views.permute(x, tuple(order))

    def padded(self, x: Node) -> Node:
        widths = tuple((self.random.randint(0, 2), self.random.randint(0, 2)) for _ in x.shape)
        return views.pad(x, widths, self.random.choice([0, 1.5]))

    def counted(self, x: Node) -> Node:
        return ew.add(x, ew.cast(ew.iota(x.shape, self.axis(x), i32), f32))

    def makers(self) -> list[Callable[[Node], Node]]:
        keep = {"keepdims": True}
        return [
            lambda x: ew.add(x, self.pick()),
            lambda x: ew.mul(x, self.pick()),
            lambda x: ew.sub(x, self.pick()),
            lambda x: ew.maximum(x, self.pick()),
            ew.tanh,
            ew.abs,
            ew.neg,
            lambda x: ew.where(ew.lt(x, self.pick()), x, self.pick()),
            lambda x: ew.cast(ew.lt(x, self.pick()), f32),
            lambda x: reductions.sum(x, self.axes(x)),
            lambda x: reductions.sum(x, self.axes(x), **keep),
            lambda x: reductions.max(x, self.axes(x), **keep),
            lambda x: reductions.min(x, self.axes(x), **keep),
            lambda x: reductions.mean(x, self.axes(x), **keep),
            lambda x: ew.cast(reductions.argmax(x, self.axis(x)), f32),
            self.joined,
            self.unit,
            self.shuffled,
            self.slice,
            self.padded,
            self.counted,
            lambda x: views.broadcast(x, (self.random.choice([2, 3]), *x.shape)),
            lambda x: views.concat([x, x], self.axis(x)),
        ]

    def roots(self) -> list[Node]:
        r = self.random
        base = tuple(r.choice(self.sizes.sizes) for _ in range(r.choice(self.sizes.ranks)))
        while math.prod(base) > self.sizes.start:
            base = base[1:]
        for _ in range(3):
            shape = tuple(n if r.random() < 0.75 else 1 for n in base)
            self.pool.append(self.leaf(shape[r.randrange(len(shape)) :]))
        self.pool += [self.leaf(base), scalar_node(r.random(), f32), const_node(0.5, f32)]
        given = len(self.pool)
        makers = self.makers()
        for _ in range(r.randint(2, 14)):
            x = r.choice(self.pool[-4:]) if r.random() < 0.7 else self.pick()
            try:
                node = r.choice(makers)(x)
            except ShapeError:
                continue
            fits = math.prod(node.shape) <= self.sizes.largest
            if fits and len(node.shape) <= self.sizes.axes:
                self.pool.append(node)
        made = self.pool[given:]
        more = r.sample(made, min(len(made), r.randint(0, 2)))
        return list(dict.fromkeys([*made[-1:], *more]))


def random_roots(seed: int, sizes: Sizes = USUAL) -> list[Node]:
    """One to three nodes to compute; the same ones for the same seed."""
    return _Maker(seed, sizes).roots()
