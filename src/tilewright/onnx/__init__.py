"""ONNX models: load, look into, run, export.

::

    session = tilewright.onnx.load("model.onnx", threads=2)
    print(session.inputs, session.outputs)
    results = session.run({"input": array})      # {name: array}
    tilewright.onnx.save(module, example, "mine.onnx")
"""

from tilewright.onnx.export import save
from tilewright.onnx.session import Session, ValueSpec, load

__all__ = ["Session", "ValueSpec", "load", "save"]
