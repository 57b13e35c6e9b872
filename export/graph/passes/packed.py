"""From one padded batch to packed tokens: what a scheduler needs to run prompts and answers in one step.

The tokens of all rows stand one after another in a batch of one, [1, tokens], through every layer but attention. There
they are laid out as rows, padded on the right, for `GroupQueryAttention`, whose 17th input `query_seqlens` says how
many of a row's tokens are real (ONNX Runtime 1.32 and later). The head runs on the positions that are asked for only.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .contract import BATCH
from .edit import CONTRIB, constant, new_node, nodes_of, replace_node

PAD_INDEX, UNPAD_INDEX, LOGITS_INDEX = "pad_index", "unpad_index", "logits_index"
QUERY_LENGTHS, LAST_POSITIONS, TOTAL_LENGTH = "query_seqlens", "seqlens_k", "total_length"
_PAST_AT, _LAST_POSITIONS_AT, _QUERY_LENGTHS_AT = 3, 5, 16
_TOKENS, _WIDTH, _LOGITS = "tokens", "padded_length", "logits_rows"


def packable(model: ir.Model) -> bool:
    """Whether the graph's attention is of the kind that `pack_tokens` knows: packed QKV, rotated by the operator."""
    nodes = list(nodes_of(model, "GroupQueryAttention", CONTRIB))
    return bool(nodes) and all(node.inputs[1] is None and _attribute(node, "do_rotary", 0) for node in nodes)


def pack_tokens(model: ir.Model) -> int:
    """Change a package's graph into one for packed tokens; return how many attention nodes it has.

    The attention mask is not an input any more. These are new:

    - `pad_index` int64 [batch, padded_length]: for each place of a padded row, its token's place in `input_ids`
    - `unpad_index` int64 [tokens]: for each token, its place in the padded rows, counted through all of them
    - `logits_index` int64 [logits_rows]: the tokens whose logits are wanted
    - `query_seqlens` int32 [batch]: tokens of each row, 0 for one that rests
    - `seqlens_k` int32 [batch]: tokens of each row, those in its cache included, less one
    - `total_length` int64 [1]: at least the longest row's, and what LongRoPE chooses its factors by
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ids.shape = ir.Shape([1, _TOKENS])
    pad, unpad = _input(model, PAD_INDEX, "INT64", [BATCH, _WIDTH]), _input(model, UNPAD_INDEX, "INT64", [_TOKENS])
    wanted = _input(model, LOGITS_INDEX, "INT64", [_LOGITS])
    queries, last = _input(model, QUERY_LENGTHS, "INT32", [BATCH]), _input(model, LAST_POSITIONS, "INT32", [BATCH])
    total = _input(model, TOTAL_LENGTH, "INT64", [1])
    for shape in nodes_of(model, "Shape"):
        if shape.inputs[0] is mask:
            ir.convenience.replace_all_uses_with(shape.outputs[0], total)
    count = 0
    for node in nodes_of(model, "GroupQueryAttention", CONTRIB):
        _lay_out(model, node, pad, unpad, last, queries)
        count += 1
    _select(model, wanted)
    common.RemoveUnusedNodesPass()(model)
    graph.inputs.remove(mask)
    return count


def _input(model: ir.Model, name: str, dtype: str, shape: list[int | str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType[dtype]), shape=ir.Shape(shape))
    model.graph.inputs.append(value)
    return value


def _attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def _lay_out(model: ir.Model, node: ir.Node, pad: ir.Value, unpad: ir.Value, last: ir.Value, queries: ir.Value) -> None:
    """Gather packed tokens into padded rows before an attention node, and back behind it."""
    packed, past = node.inputs[0], node.inputs[_PAST_AT]
    assert packed is not None and past is not None and past.shape is not None
    width = _attribute(node, "num_heads", 0) * int(past.shape[3])  # pyright: ignore[reportArgumentType]
    # The batch of one is not a dimension of the tokens within: the first gather works on [tokens, width].
    flat = _step(model, node, "Squeeze", "flat", [packed, constant(model, "packed_axis", np.array([0], np.int64))])
    rows = _step(model, node, "Gather", "rows", [flat.outputs[0], pad], axis=0)
    inputs = [rows.outputs[0], *node.inputs[1:]]
    inputs += [None] * (_QUERY_LENGTHS_AT + 1 - len(inputs))
    inputs[_LAST_POSITIONS_AT], inputs[_QUERY_LENGTHS_AT] = last, queries
    attributes = list(node.attributes.values())
    attention = ir.Node(CONTRIB, node.op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    attention.outputs[0].name = f"{node.name}_rows"
    for new, old in zip(attention.outputs, node.outputs, strict=True):
        new.type = old.type
    shape = constant(model, "packed_shape", np.array([1, -1, width], np.int64))
    joined = _step(model, node, "Reshape", "joined", [attention.outputs[0], shape])
    tokens = _step(model, node, "Gather", "tokens", [joined.outputs[0], unpad], axis=1)
    replace_node(model, node, [flat, rows, attention, joined, tokens], [tokens.outputs[0], *attention.outputs[1:]])


def _step(
    model: ir.Model, owner: ir.Node, op_type: str, what: str, inputs: list[ir.Value], **attributes: int
) -> ir.Node:
    node = new_node(model, op_type, inputs, attributes)
    node.name = f"{owner.name}/{what}"
    node.outputs[0].name, node.outputs[0].type = f"{node.name}_output_0", owner.outputs[0].type
    return node


def _select(model: ir.Model, wanted: ir.Value) -> None:
    """Let the head run on the wanted tokens only."""
    logits = model.graph.outputs[0]
    head = logits.producer()
    assert head is not None
    hidden = head.inputs[0]
    assert hidden is not None
    chosen = new_node(model, "Gather", [hidden, wanted], {"axis": 1})
    chosen.name = f"{head.name}/Gather"
    chosen.outputs[0].name, chosen.outputs[0].type = f"{chosen.name}_output_0", hidden.type
    model.graph.insert_before(head, chosen)
    head.replace_input_with(0, chosen.outputs[0])
    assert logits.shape is not None
    logits.shape = ir.Shape([1, _LOGITS, logits.shape[-1]])
