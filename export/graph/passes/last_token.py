"""Run the head on the last token only."""

import numpy as np
import onnx_ir as ir

from .edit import constant, new_node
from .linear import linear_weight


def slice_last_token(model: ir.Model) -> int:
    """Cut the hidden states before the head to the last position: logits become [batch, 1, vocab]."""
    head = model.graph.outputs[0].producer()
    if head is None or linear_weight(head) is None:
        raise ValueError("the first output is not made by a linear head")
    hidden = head.inputs[0]
    assert hidden is not None and hidden.shape is not None
    bounds = (
        constant(model, "last_token_start", np.array([-1], np.int64)),
        constant(model, "last_token_end", np.array([np.iinfo(np.int64).max], np.int64)),
        constant(model, "last_token_axis", np.array([1], np.int64)),
    )
    node = new_node(model, "Slice", [hidden, *bounds], like=[hidden])
    batch, _length, width = hidden.shape
    node.outputs[0].shape = ir.Shape([batch, 1, width])
    model.graph.insert_before(head, node)
    head.replace_input_with(0, node.outputs[0])
    logits = head.outputs[0]
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], 1, logits.shape[2]])
    return 1
