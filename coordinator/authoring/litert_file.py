"""The flatbuffer as a file: nothing but builtin operators, and no values in it.

The converter stores a start value for each variable, as large as the model, and a subgraph that assigns them.
``restore`` sets every variable anyway, so both are taken out: what is left is a program, a few ten kB.
"""

from __future__ import annotations

from typing import Any, Final

import flatbuffers
from tensorflow.lite.python import schema_py_generated as schema

from edge_sdk.errors import TrainingError

_IDENTIFIER: Final = b"TFL3"
_NAMES: Final = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_") and name.isupper()
}


def without_initial_values(flatbuffer: bytes) -> bytes:
    """Drop the assignments of start values, and the buffers that only they use.

    Raises:
        TrainingError: an operator is no builtin.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(flatbuffer), 0))
    _refuse_custom(model)
    initializers: set[int] = set()
    for graph in model.subgraphs:
        calls = [operator for operator in graph.operators if _code(model, operator) == schema.BuiltinOperator.CALL_ONCE]
        initializers.update(operator.builtinOptions.initSubgraphIndex for operator in calls)
        graph.operators = [operator for operator in graph.operators if operator not in calls]
    for index in initializers:
        model.subgraphs[index].operators, model.subgraphs[index].tensors = [], []
        model.subgraphs[index].inputs, model.subgraphs[index].outputs = [], []
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    model.metadata, model.metadataBuffer, model.description = [], None, "edge-flchain training step"
    builder = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _refuse_custom(model: Any) -> None:
    custom = [code.customCode for code in model.operatorCodes if code.customCode]
    if custom:
        names = ", ".join(name.decode() for name in custom)
        raise TrainingError(f"litert: {names}: no builtin operator does this")


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))
