"""Sizes that are not numbers yet: whole-number expressions over named symbols.

A shape is a tuple of sizes; a size is an ``int`` or a :class:`Size`, a polynomial over symbols and
over quotients, remainders, minima and maxima of such. Equal expressions are one object, so most
questions (is this stride that one times the size?) have one answer for every value of the symbols.

There are two kinds of symbols. Those of :func:`Dim` have bounds and nothing else: a decoder's
graph has them, its program serves every value, and a question that has no answer for all of them is
a ``TypeError`` (two expressions are equal when they are the same). Those of a :class:`Scope` stand
for the sizes of one trace and have a *hint*, the value that they had then. A question that symbols
leave open is answered from the hints, and the scope takes a note, a *guard*: what is built in the
trace holds for all values for which every guard is true. Asking for the number itself (``int(n)``,
``range(n)``, a size as a dictionary's key) notes that it has to be this one. So code that knows
nothing of symbols is right all the same; it only narrows the range of sizes that it is right for.
"""

from tilewright.sizes.real import Real
from tilewright.sizes.scope import Dim, Scope
from tilewright.sizes.size import (
    Shape,
    Size,
    SizeLike,
    applied,
    evaluate,
    has_value,
    hint,
    hints,
    is_fixed,
    key_of,
    length_of,
    maximum,
    may_be_other,
    minimum,
    roughly,
    same,
    shape_of,
    slice_indices,
    upper_bound,
    whole,
)

__all__ = [
    "Dim",
    "Real",
    "Scope",
    "Shape",
    "Size",
    "SizeLike",
    "applied",
    "evaluate",
    "has_value",
    "hint",
    "hints",
    "is_fixed",
    "key_of",
    "length_of",
    "maximum",
    "may_be_other",
    "minimum",
    "roughly",
    "same",
    "shape_of",
    "slice_indices",
    "upper_bound",
    "whole",
]
