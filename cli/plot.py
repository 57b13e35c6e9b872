"""The picture of `phi3-onnx show --plot`: how far each quantized matrix is from the original, layer by layer."""

import re
from importlib.util import find_spec
from pathlib import Path

from ..configs import Manifest, OutputError, UsageError
from .requirements import MissingExtraError

_MATRIX = re.compile(r"model\.layers\.(\d+)\.\w+\.(\w+)\.weight")
_PANELS = (
    ("relative_error", "error of the weights\n(relative, Frobenius norm)"),
    ("error_ratio", "output error\n(share of plain rounding's)"),
)


def plot_errors(manifest: Manifest, path: Path) -> None:
    """Draw the errors of a package's matrices over its layers; the ending (.svg, .png) says in which format.

    Raises:
        UsageError: nothing in the package is quantized, or the format is not one that can be drawn.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.

    """
    values = _values(manifest)
    if not any(values.values()):
        raise UsageError(
            f"nothing in {manifest.model}/{manifest.target.name} is quantized, so there is no error to draw"
        )
    if find_spec("matplotlib") is None:
        raise MissingExtraError("this needs matplotlib", remedy='run: pip install "phi3-onnx[plot]"')
    from matplotlib.figure import Figure

    panels = [(key, label) for key, label in _PANELS if values[key]]
    figure = Figure(figsize=(9, 3.2 * len(panels)), layout="constrained")
    figure.suptitle(f"{manifest.model}, {manifest.target.name}: {manifest.bits_per_weight:.2f} bits per weight")
    column = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (key, label) in zip(column, panels, strict=True):
        for kind, points in values[key].items():
            axes.plot(*zip(*sorted(points.items()), strict=True), marker=".", label=kind)
        axes.set(ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(ncols=4, fontsize="small")
    column[-1].set_xlabel("layer")
    if path.suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{path}: the ending must name a picture format, such as .svg or .png")
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _values(manifest: Manifest) -> dict[str, dict[str, dict[int, float]]]:
    """Return figure -> kind of matrix -> layer -> value."""
    found: dict[str, dict[str, dict[int, float]]] = {key: {} for key, _ in _PANELS}
    for name, tensor in manifest.tensors.items():
        match = _MATRIX.fullmatch(name)
        if match is None or tensor.block_size is None:
            continue
        for key, value in (
            ("relative_error", tensor.relative_error),
            ("error_ratio", tensor.details.get("error_ratio")),
        ):
            if value is not None:
                found[key].setdefault(match[2], {})[int(match[1])] = float(value)
    return found
