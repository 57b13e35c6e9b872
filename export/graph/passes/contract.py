"""Name inputs, outputs, dimensions and nodes as the runtimes and people expect them."""

from collections import Counter

import onnx_ir as ir

from .linear import linear_weight

BATCH, LENGTH, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


def name_interface(model: ir.Model) -> int:
    """Give the traced graph the interface of a package; return how many inputs and outputs it has."""
    graph = model.graph
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    layers = (len(outputs) - 1) // 2
    has_positions = len(inputs) == 2 + 2 * layers + 1
    _name(inputs[0], "input_ids", [BATCH, LENGTH])
    _name(inputs[1], "attention_mask", [BATCH, TOTAL])
    if has_positions:
        _name(inputs[-1], "position_ids", [BATCH, LENGTH])
    _name(outputs[0], "logits", [BATCH, None, None])
    if outputs[0].shape is not None and outputs[0].shape[1] != 1:
        _name(outputs[0], "logits", [BATCH, LENGTH, None])
    for i in range(layers):
        for kind, offset in (("key", 0), ("value", 1)):
            _name(inputs[2 + 2 * i + offset], f"past_key_values.{i}.{kind}", [BATCH, None, PAST, None])
            _name(outputs[1 + 2 * i + offset], f"present.{i}.{kind}", [BATCH, None, TOTAL, None])
    _name_nodes(graph)
    # The dimensions in between keep the tracer's symbols, which no longer mean anything to a reader.
    kept = {*graph.inputs, *graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value not in kept:
                value.shape = None
    if has_positions:  # position_ids beside the other token inputs, as people list them
        positions = graph.inputs.pop()
        graph.inputs.insert(2, positions)
    return len(inputs) + len(outputs)


def _name(value: ir.Value, name: str, dimensions: list[str | None]) -> None:
    """Rename a value and its dimensions; None leaves a dimension as it is."""
    value.name = name
    assert value.shape is not None
    value.shape = ir.Shape([old if new is None else new for old, new in zip(value.shape, dimensions, strict=True)])


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes after the weight they use, such as `/model/layers.0/mlp/down_proj/MatMul`."""
    seen: Counter[str] = Counter()
    scope = "/model"
    for node in graph:
        weight = linear_weight(node)
        owner = weight or next((v for v in node.inputs if v is not None and v.is_initializer() and _is_weight(v)), None)
        if owner is not None and owner.name:
            scope = "/" + owner.name.removesuffix(".weight").replace(".", "/").replace("/layers/", "/layers.")
        name = f"{scope}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for index, output in enumerate(node.outputs):
            if output.name != "" and not output.is_graph_output():
                output.name = f"{node.name}_output_{index}"


def _is_weight(value: ir.Value) -> bool:
    return bool(value.name and value.name.endswith(".weight"))
