"""``Module``: parameters by name, as in PyTorch, so that checkpoints need no mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tilewright.errors import FormatError, ShapeError
from tilewright.tensor.core import Tensor
from tilewright.tensor.creation import asarray

__all__ = ["Module", "ModuleList", "Parameter", "Sequential"]


def Parameter(value: Any) -> Tensor:
    """A tensor that training changes: one that requires gradients."""
    return Tensor(value, requires_grad=True)


class Module:
    """A function with parameters.

    Tensors and modules assigned as attributes are found by name: a tensor that requires gradients
    is a parameter, another one a buffer (running statistics); names that begin with an underscore
    are private and not saved. Subclasses write ``forward``.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of what is directly inside."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def modules(self) -> Iterator[Module]:
        """This module and everything inside, depth first."""
        yield self
        for _, child in self.children():
            yield from child.modules()

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

    def parameters(self) -> list[Tensor]:
        """Every parameter, a shared one once."""
        return [tensor for _, tensor in self.named_parameters()]

    def train(self, mode: bool = True) -> Module:
        """Turn dropout and batch statistics on (or off); returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
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
        return missing + left

    def __repr__(self) -> str:
        lines = [f"  ({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        shapes = ", ".join(
            f"{n}{list(v.shape)}" for n, v in vars(self).items() if isinstance(v, Tensor)
        )
        head = f"{type(self).__name__}({shapes}"
        return head + ("\n" + "\n".join(lines) + "\n)" if lines else ")")


class ModuleList(Module):
    """Modules in a row, named by their numbers."""

    def __init__(self, modules: Any = ()) -> None:
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return len(vars(self)) - ("training" in vars(self))

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
