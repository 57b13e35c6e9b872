"""A copy of `decode.onnx` that multiplies int8 by int8, for processors on which that is far faster."""

from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from ...configs import PackageError
from ...configs.errors import first_line
from .passes import Rewrite, run_passes
from .passes.int8_products import to_int8_products


def write_int8_graph(graph: Path, copy: Path) -> None:
    """Write a copy of a graph whose matrix products are of integers; weights go into a file of its name and `.data`.

    Args:
        graph: `decode.onnx` of a package.
        copy: where the copy goes, in another folder, which is there.

    Raises:
        PackageError: the graph cannot be read, or holds nothing to change.
        OSError: the copy cannot be written.

    """
    try:
        model = ir.load(graph)
    except (ValueError, DecodeError) as error:
        raise PackageError(f"{graph} cannot be read: {first_line(error)}") from error
    run_passes(model, [Rewrite(to_int8_products)])
    model.graph.name = "phi3 decode int8"
    ir.save(model, copy, external_data=f"{copy.name}.data")
