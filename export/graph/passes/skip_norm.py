"""`Add` + `SimplifiedLayerNormalization` -> `SkipSimplifiedLayerNormalization`."""

import onnx_ir as ir

from .edit import CONTRIB, new_node, nodes_of, replace_node


def fuse_skip_norms(model: ir.Model) -> int:
    """Fuse each residual addition with the norm that follows it; return how many were fused."""
    count = 0
    for norm in nodes_of(model, "SimplifiedLayerNormalization"):
        total, weight = norm.inputs
        add = total.producer() if total is not None else None
        if add is None or add.op_type != "Add" or total is None:
            continue
        fused = new_node(
            model,
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, weight],
            {"epsilon": norm.attributes["epsilon"].as_float()},
            domain=CONTRIB,
            like=[norm.outputs[0]],
        )
        # Outputs are the norm, two statistics that training wants, and the sum where the residual stream continues.
        residual_goes_on = len(total.uses()) > 1 or total.is_graph_output()
        if residual_goes_on:
            fused.resize_outputs(4)
            fused.outputs[1].name = fused.outputs[2].name = ""
            fused.outputs[3].type, fused.outputs[3].shape = total.type, total.shape
        model.graph.insert_before(add, fused)
        norm.outputs[0].replace_all_uses_with(fused.outputs[0])
        model.graph.remove(norm, safe=True)
        if residual_goes_on:
            replace_node(model, add, [], [fused.outputs[3]])
        else:
            model.graph.remove(add, safe=True)
        count += 1
    return count
