"""``Module``: parameters by name, as in PyTorch, so that checkpoints need no mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tilewright.errors import FormatError, ShapeError
from tilewright.tensor.core import LEAF, Tensor, realize
from tilewright.tensor.creation import asarray
from tilewright.tensor.modes import mode
from tilewright.tensor.promotion import as_dtype

__all__ = ["Module", "ModuleList", "Parameter", "Sequential"]


Self = TypeVar("Self", bound="Module")


def Parameter(value: Any) -> Tensor:
    """A tensor that training changes: one that requires gradients."""
    return Tensor(value, requires_grad=True)


class Module:
    """A function with parameters.

    Tensors and modules assigned as attributes (or in lists, tuples or dicts) are found by name: a
    tensor that requires gradients is a parameter, another one a buffer (running statistics); names
    that begin with an underscore are private and not saved. Subclasses write ``forward``.

    Initial values are drawn lazily, all in one program at the first call (or when an optimiser is
    made); values that are loaded before cost nothing.
    """

    _training: bool = True
    _ready: bool = False

    @property
    def training(self) -> bool:
        """Whether dropout and batch statistics are on; a compiled function heeds changes."""
        if mode.trace is not None:
            mode.trace.record_flag(self, self._training)
        return self._training

    @training.setter
    def training(self, value: bool) -> None:
        if mode.trace is not None:
            mode.trace.record_flag(self, None)
        self._training = bool(value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._ready and mode.trace is None:
            self.realize()
        return self.forward(*args, **kwargs)

    def realize(self: Self) -> Self:
        """Compute every parameter and buffer; returns the module."""
        realize(*[t for m in self.modules() for t in m._own_tensors()])
        for module in self.modules():
            module._ready = True
        return self

    def _own_tensors(self) -> list[Tensor]:
        return [v for v in vars(self).values() if isinstance(v, Tensor)]

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of what is directly inside."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item
            elif isinstance(value, dict):
                for key, item in value.items():
                    if isinstance(item, Module):
                        yield f"{name}.{key}", item

    def modules(self) -> Iterator[Module]:
        """This module and everything inside, depth first."""
        for _, module in self.named_modules():
            yield module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(name, module) of this module (named "") and everything inside, depth first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def apply(self: Self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` with every module inside, then with this one; returns the module."""
        for _, child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every parameter and buffer; a shared tensor under each of its names."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and not name.startswith("_"):
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_tensors(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every parameter, a shared one once."""
        seen: set[int] = set()
        for name, tensor in self.named_tensors():
            if tensor.requires_grad and id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every tensor that is saved but not trained."""
        for name, tensor in self.named_tensors():
            if not tensor.requires_grad:
                yield name, tensor

    def parameters(self) -> list[Tensor]:
        """Every parameter, a shared one once."""
        return [tensor for _, tensor in self.named_parameters()]

    def requires_grad_(self: Self, wanted: bool = True) -> Self:
        """Freeze the floating-point parameters (or make every such tensor one); returns self."""
        for _, tensor in list(self.named_tensors()):
            if tensor.dtype.is_float:
                tensor.requires_grad = wanted
        return self

    def to(self: Self, dtype: Any) -> Self:
        """Give every floating-point tensor that is saved another dtype; returns the module.

        The tensors are new ones: make optimisers afterwards. Private ones (tables of angles) stay.
        """
        kind = as_dtype(dtype)
        made: dict[int, Tensor] = {}
        for module in self.modules():
            for name, tensor in list(vars(module).items()):
                if not isinstance(tensor, Tensor) or name.startswith("_"):
                    continue
                if tensor.dtype.is_float:
                    if id(tensor) not in made:
                        made[id(tensor)] = _cast(tensor, kind)
                    setattr(module, name, made[id(tensor)])
            module._ready = False
        return self

    def train(self: Self, mode: bool = True) -> Self:
        """Turn dropout and batch statistics on (or off); returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """As for inference: no dropout, running statistics."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for tensor in self.parameters():
            tensor.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as PyTorch names them; shared ones under each name."""
        return dict(self.named_tensors())

    def load_state_dict(
        self, state: Mapping[str, Tensor | np.ndarray], strict: bool = True
    ) -> list[str]:
        """Assign the tensors of ``state``; nothing changes unless all of them fit.

        With ``strict`` names that are missing or left over are a :class:`FormatError`, else they
        are returned.
        """
        own = self.state_dict()
        missing = [f"missing: {n}" for n in own if n not in state]
        left = [f"not in the module: {n}" for n in state if n not in own]
        if strict and (missing or left):
            raise FormatError("state_dict does not fit: " + "; ".join(missing + left))
        for name, value in state.items():
            if name in own and tuple(value.shape) != own[name].shape:
                raise ShapeError(
                    f"state_dict: {name} has shape {tuple(value.shape)}, the module wants "
                    f"{own[name].shape}"
                )
        for name, value in state.items():
            if name in own:
                own[name].assign(value if isinstance(value, Tensor) else asarray(value))
        for module in self.modules():
            module._ready = False
        return missing + left

    def __repr__(self) -> str:
        lines = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        shapes = ", ".join(
            f"{n}{list(v.shape)}" for n, v in vars(self).items() if isinstance(v, Tensor)
        )
        head = f"{type(self).__name__}({shapes}"
        return head + ("\n" + "\n".join(lines) + "\n)" if lines else ")")


def _cast(tensor: Tensor, dtype: Any) -> Tensor:
    cast = tensor.detach().astype(dtype)
    if tensor._tracks == LEAF:
        cast = Parameter(cast)
    return cast


class ModuleList(Module):
    """Modules in a row, named by their numbers."""

    def __init__(self, modules: Any = ()) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return sum(name.isdigit() for name in vars(self))

    def __getitem__(self, i: int) -> Any:
        return getattr(self, str(range(len(self))[i]))

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])

    def append(self, module: Module) -> None:
        """One more at the end."""
        setattr(self, str(len(self)), module)


class Sequential(ModuleList):
    """Modules (or functions of one tensor in between), one after the other."""

    def __init__(self, *modules: Any) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
