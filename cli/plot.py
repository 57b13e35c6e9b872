"""The pictures of `--plot`: errors of the matrices (`show`), distances on a text (`evaluate`), speeds (`bench`).

The file's ending (.svg, .png) says in which format a picture is drawn. Each function raises what `check_plot` raises,
and OutputError where the file cannot be written.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from ..configs import Manifest, OutputError, UsageError
from ..configs.origin import install_command
from ..configs.requirements import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluate.evaluate import Evaluation
    from ..evaluate.sweep import Sweep

_TITLE = 85
"""Characters of a title's line, which fit into a picture's width."""
_PARTS = 40
"""Pieces of a text, over each of which `evaluate --plot` takes the mean."""

_MATRIX = re.compile(r"model\.layers\.(\d+)\.\w+\.(\w+)\.weight")
_PANELS = (
    ("relative_error", "error of the weights\n(relative, Frobenius norm)"),
    ("error_ratio", "output error\n(share of plain rounding's)"),
)
_KINDS = {
    "prefill": "prefill: a prompt",
    "decode": "decode: token by token",
    "together": "together: several texts, the tokens of all",
}


def plot_errors(manifest: Manifest, path: Path) -> None:
    """Draw the errors of a package's matrices over its layers.

    Raises:
        UsageError: nothing in the package is quantized.

    """
    values = _values(manifest)
    if not any(values.values()):
        raise UsageError(
            f"nothing in {manifest.model}/{manifest.target.name} is quantized, so there is no error to draw"
        )
    check_plot(path)
    panels = [(key, label) for key, label in _PANELS if values[key]]
    title = f"{manifest.model}, {manifest.target.name}: {manifest.bits_per_weight:.2f} bits per weight; lower is better"
    figure, column = _panels(title, len(panels))
    for axes, (key, label) in zip(column, panels, strict=True):
        for kind, points in values[key].items():
            axes.plot(*zip(*sorted(points.items()), strict=True), marker=".", label=kind)
        axes.set(ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(ncols=4, fontsize="small")
    column[-1].set_xlabel("layer")
    _save(figure, path)


def plot_evaluation(found: "Evaluation", path: Path) -> None:
    """Draw how far the package is from its reference, over positions, and how well each predicts the text, over it."""
    check_plot(path)
    over = found.positions
    reference = f", against {found.reference}" if found.reference else ""
    figure, column = _panels(f"{found.package} on {found.tokens} tokens of text{reference}", 1 + (over.kl is not None))
    if over.kl is not None and found.metrics is not None:
        axes = column[0]
        axes.plot(np.sort(np.maximum(over.kl, 1e-8)), np.linspace(0, 100, len(over.kl)))
        for name, value, style in (
            ("median", found.metrics.median_kl, ":"),
            ("mean", found.metrics.mean_kl, "--"),
            ("99th percentile", found.metrics.p99_kl, "-."),
        ):
            axes.axvline(max(value, 1e-8), color="tab:red", linestyle=style, label=f"{name} {value:.3g}")
        axes.set(xscale="log", ylim=(0, 100))
        axes.set(xlabel="KL divergence from the reference, nats", ylabel="positions with at most that, %")
        axes.set_title("Distance of the next token's distribution: further left is better", fontsize="medium")
        axes.legend(fontsize="small")
    axes = column[-1]
    for name, values in (("reference", over.reference_nll), ("package", over.nll)):
        if values is not None:
            parts = np.array_split(values, min(_PARTS, len(values)))
            ends = np.cumsum([len(part) for part in parts])
            axes.plot(ends, [part.mean() for part in parts], marker=".", label=f"{name}, mean {values.mean():.3f}")
    axes.set(xlabel="tokens of the text", ylabel="surprise, nats a token", ylim=(0, None))
    axes.set_title("How well the text is predicted: lower is better", fontsize="medium")
    axes.legend(fontsize="small")
    for axes in column:
        axes.grid(alpha=0.3)
    _save(figure, path)


def plot_speeds(sweeps: "Sequence[Sweep]", path: Path) -> None:
    """Draw the speeds of packages, a panel for each kind of work: medians, and lines from slowest to fastest run."""
    check_plot(path)
    kinds = list(dict.fromkeys(figure.kind for sweep in sweeps for figure in sweep.figures))
    figure, column = _panels("Speed: median and spread of the runs; higher is better", len(kinds))
    for axes, kind in zip(column, kinds, strict=True):
        width = 0.8 / len(sweeps)
        labels: list[str] = []
        for number, sweep in enumerate(sweeps):
            chosen = [entry for entry in sweep.figures if entry.kind == kind]
            labels = [_work(entry.tokens, entry.depth, entry.texts if kind == "together" else 0) for entry in chosen]
            middle = np.array([entry.tokens_per_second for entry in chosen])
            spread = [middle - [entry.least for entry in chosen], [entry.most for entry in chosen] - middle]
            places = np.arange(len(chosen)) + (number - (len(sweeps) - 1) / 2) * width
            label = f"{sweep.package} on {sweep.provider} ({sweep.engine})"
            bars = axes.bar(places, middle, width * 0.95, yerr=spread, capsize=3, label=label)
            axes.bar_label(bars, fmt="%.3g", padding=3, fontsize="small")
        axes.set_xticks(range(len(labels)), labels, fontsize="small")
        most = max(entry.most for sweep in sweeps for entry in sweep.figures if entry.kind == kind)
        axes.set(ylabel="tokens/s", ylim=(0, 1.15 * most))  # room for the figures
        axes.set_title(_KINDS[kind], fontsize="medium")
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
    figure.legend(*column[0].get_legend_handles_labels(), fontsize="small", loc="outside lower left")
    _save(figure, path)


def _work(tokens: int, depth: int, texts: int) -> str:
    words = [f"{tokens} tokens"]
    words += [f"after {depth}"] if depth else []
    words += [f"{texts} {'texts' if texts > 1 else 'text'}"] if texts else []
    return "\n".join(words)


def check_plot(path: Path) -> None:
    """Check, before anything long is measured, that a picture can be drawn into a file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the format is not one that can be drawn.
        OutputError: the folder does not exist.

    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("this needs matplotlib", remedy=f"run: {install_command('plot')}")
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UsageError(f"{path}: the ending must name a picture format, such as .svg or .png")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.absolute().parent} does not exist, so {path} cannot be written")


def _panels(title: str, count: int) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * count), layout="constrained")
    # A path has no place to break a line at, and a title that is too long would be cut at both ends.
    figure.suptitle("\n".join(wrap(title, _TITLE)), fontsize="large")
    return figure, list(figure.subplots(count, squeeze=False)[:, 0])


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib import rc_context

    try:
        with rc_context({"svg.fonttype": "none"}):  # words stay words, which can be searched and read aloud
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
