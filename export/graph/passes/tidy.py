"""Remove what tracing leaves behind: identities, dead nodes, constant nodes, exporter metadata."""

import onnx_ir as ir
from onnx_ir.passes import common


def tidy(model: ir.Model) -> int:
    """Clean the graph without changing what it computes; return the number of nodes that are gone."""
    before = model.graph.num_nodes()
    # The exporter may leave an Identity where torch had a call that changes nothing.
    for rewrite in (
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        rewrite(model)
    return before - model.graph.num_nodes()
