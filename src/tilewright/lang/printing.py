"""Tile IR as text, for people: scalar constants stand where they are used."""

from __future__ import annotations

from tilewright.lang.ir import Block, Function, Op, TileType, Value, Window

__all__ = ["print_function"]


def print_function(fn: Function) -> str:
    """The text of ``fn``, one op per line, in SSA notation."""
    return _Printer().function(fn)


class _Printer:
    def __init__(self) -> None:
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()

    def name(self, value: Value) -> str:
        op = value.op
        if op is not None and op.name == "constant" and value.type == TileType(value.dtype):
            return str(op.attrs["value"])
        if value not in self.names:
            base = value.name or str(len(self.names))
            name, n = base, 1
            while name in self.taken:
                name, n = f"{base}.{n}", n + 1
            self.taken.add(name)
            self.names[value] = name
        return "%" + self.names[value]

    def function(self, fn: Function) -> str:
        params = ", ".join(f"{self.name(p)}: {p.type}" for p in fn.params)
        return "\n".join([f"kernel {fn.name}({params}) {{", *self.block(fn.body, "  "), "}"])

    def block(self, block: Block, indent: str) -> list[str]:
        lines: list[str] = []
        for op in block.ops:
            if op.name != "constant" or op.result.type != TileType(op.result.dtype):
                lines += self.op(op, indent)
        return lines

    def op(self, op: Op, indent: str) -> list[str]:
        body = self.body(op)  # operands first: they are numbered before the results
        head = ", ".join(self.name(r) for r in op.results)
        types = ", ".join(str(r.type) for r in op.results)
        line = indent + (f"{head} = " if head else "") + body + (f" : {types}" if types else "")
        if not op.blocks:
            return [line]
        lines = [line + " {"]
        for i, block in enumerate(op.blocks):
            if i:
                lines.append(indent + "} else {")
            if block.args:
                args = ", ".join(f"{self.name(a)}: {a.type}" for a in block.args)
                lines.append(f"{indent}  ^({args}):")
            lines += self.block(block, indent + "  ")
        return [*lines, indent + "}"]

    def body(self, op: Op) -> str:
        if op.name in ("load", "store"):
            array, *rest = op.operands
            axes = op.attrs["axes"]
            index = ", ".join(
                self.name(v) + (_window(a) if isinstance(a, Window) else "")
                for a, v in zip(axes, rest)
            )
            body = f"{op.name} {self.name(array)}[{index}]"
            if op.name == "store":
                return f"{body} = {self.name(rest[-1])}"
            if "prefetch" in op.attrs:
                return f"{body} prefetch={op.attrs['prefetch']} level={op.attrs['level']}"
            return body + (f" fill={op.attrs['fill']}" if op.attrs.get("fill", 0) else "")
        body = " ".join([op.name, ", ".join(self.name(v) for v in op.operands)]).rstrip()
        attrs = ", ".join(f"{k}={v}" for k, v in op.attrs.items())
        return body + (f" {{{attrs}}}" if attrs else "")


def _window(axis: Window) -> str:
    return f":+{axis.length}" + (f":{axis.step}" if axis.step != 1 else "")
