"""`SplitToSequence` + `SequenceAt` -> `Split`, which every provider has."""

import numpy as np
import onnx_ir as ir

from .edit import constant, constant_value, new_node, nodes_of, replace_node


def replace_sequence_splits(model: ir.Model) -> int:
    """Replace each split that goes through a sequence of tensors; return how many there were."""
    count = 0
    for split in nodes_of(model, "SplitToSequence"):
        data, sizes = split.inputs[0], constant_value(split.inputs[1])
        if data is None or data.shape is None or sizes is None:
            continue
        axis = split.attributes["axis"].as_int()
        width = data.shape[axis]
        parts = {}
        for at, _ in split.outputs[0].uses():
            index = constant_value(at.inputs[1]) if at.op_type == "SequenceAt" else None
            if index is None:
                break
            parts[int(index)] = at
        else:
            # A scalar size means equal chunks, the last one perhaps smaller.
            if sizes.ndim == 0:
                assert isinstance(width, int)
                chunk = int(sizes)
                lengths = [min(chunk, width - start) for start in range(0, width, chunk)]
            else:
                lengths = [int(size) for size in sizes]
            name = "split_sizes_" + "_".join(map(str, lengths))
            node = new_node(model, "Split", [data, constant(model, name, np.array(lengths, np.int64))], {"axis": axis})
            node.resize_outputs(len(lengths))
            for output, length in zip(node.outputs, lengths, strict=True):
                output.type = data.type
                output.shape = ir.Shape([*data.shape[:axis], length] if axis == -1 else data.shape)
            model.graph.insert_before(split, node)
            for index, at in parts.items():
                replace_node(model, at, [], [node.outputs[index]])
            model.graph.remove(split, safe=True)
            count += 1
    return count
