"""The pictures of `evaluate --plot` and `bench --plot`: what they say, and what is refused before anything runs."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.cli import plot
from phi3_onnx.evaluate.evaluate import evaluate
from phi3_onnx.evaluate.parity.corpus import text

from .conftest import Run

Make = Callable[..., Path]


def words(path: Path) -> str:
    return " ".join(re.findall(r">([^<>]+)</t(?:ext|span)>", path.read_text(encoding="utf-8")))


def test_a_picture_of_an_evaluation(run: Run, tiny_package: Make, tmp_path: Path) -> None:
    package, reference, file = tiny_package("gqa", "cpu-int4-rtn"), tiny_package("gqa"), tmp_path / "distance.svg"
    ran = run("evaluate", package, "--reference", reference, "--max-tokens", 200, "--plot", file)
    assert ran.code == 0, ran.err
    assert f"drew {file}" in ran.err and "positions" not in ran.out
    drawn = words(file)
    mean, median, p99 = re.findall(r"(?:mean|median|p99) ([\d.e-]+)", ran.out)
    for said in (
        "tiny-gqa/cpu-int4-rtn on 200 tokens of text, against tiny-gqa/cpu-fp32",
        "further left is better",
        "KL divergence from the reference, nats",
        "positions with at most that, %",
        "lower is better",
        "tokens of the text",
        "surprise, nats a token",
        f"mean {float(mean):.3g}",
        f"median {float(median):.3g}",
        f"99th percentile {float(p99):.3g}",
    ):
        assert said in drawn, said


def test_without_a_reference_only_the_surprise_is_drawn(run: Run, tiny_package: Make, tmp_path: Path) -> None:
    file = tmp_path / "surprise.svg"
    ran = run("evaluate", tiny_package("plain"), "--no-reference", "--max-tokens", 30, "--plot", file)
    assert ran.code == 0, ran.err
    assert "surprise" in words(file) and "KL" not in words(file)


def test_what_is_drawn_is_what_the_figures_are_means_of(tiny_package: Make) -> None:
    found = evaluate(tiny_package("gqa", "cpu-int4-rtn"), text()[:600], reference=tiny_package("gqa"), provider="cpu")
    over, metrics = found.positions, found.metrics
    assert metrics is not None and over.kl is not None and over.reference_nll is not None
    assert over.kl.mean() == metrics.mean_kl and np.percentile(over.kl, 99) == metrics.p99_kl
    assert over.nll.mean() == metrics.package.mean_nll and over.reference_nll.mean() == metrics.reference.mean_nll
    assert "positions" not in found.to_dict()


def test_a_picture_of_speeds(run: Run, tiny_package: Make, tmp_path: Path) -> None:
    file, packages = tmp_path / "speeds.svg", [tiny_package("gqa", "cpu-int4-rtn"), tiny_package("gqa")]
    options = ("-p", "4,8", "-n", 2, "--repeat", 1, "--threads", 1, "--provider", "cpu", "--plot", file, "-o", "csv")
    ran = run("bench", *packages, *options)
    assert ran.code == 0, ran.err
    drawn = words(file)
    assert "higher is better" in drawn and "tokens/s" in drawn
    packages_drawn = ("tiny-gqa/cpu-int4-rtn on", "tiny-gqa/cpu-fp32 on")
    for panel in ("prefill: a prompt", "decode: token by token", "4 tokens", "8 tokens", *packages_drawn):
        assert panel in drawn, panel
    speeds = [float(line.split(",")[5]) for line in ran.out.splitlines()[1:]]
    assert len(speeds) == 6 and all(f"{speed:.3g}" in drawn for speed in speeds)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("evaluate", "PACKAGE", "--plot", "x.doc"), 2, r"x\.doc: the ending must name a picture format"),
        (("evaluate", "PACKAGE", "--plot", "none/x.svg"), 1, r"none does not exist"),
        (("evaluate", "PACKAGE", "--plot", "x.svg", "--tasks", "mmlu"), 2, r"--tasks or --plot"),
        (("bench", "PACKAGE", "--plot", "x.doc"), 2, r"x\.doc: the ending must name a picture format"),
        (("bench", "PACKAGE", "--plot", "x.svg", "--against", "PACKAGE"), 2, r"--plot draws speeds"),
    ],
)
def test_what_cannot_be_drawn(run: Run, tiny_package: Make, arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = run(*(str(tiny_package("plain")) if word == "PACKAGE" else word for word in arguments))
    assert ran.code == code and re.search(said, ran.err) and len(ran.err.splitlines()) == 1 and not ran.out


def test_a_long_title_is_not_cut() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    title = "model/cpu-int4-rtn on 4096 tokens of text, against /home/user/" + "a-long-name/" * 12 + "model.gguf"
    figure, _ = plot._panels(title, 1)
    FigureCanvasAgg(figure).draw()
    drawn = figure.get_suptitle().replace("\n", "")
    assert drawn.replace(" ", "") == title.replace(" ", "")
    (place,) = (text.get_window_extent() for text in figure.texts)
    assert place.x0 >= 0 and place.x1 <= figure.bbox.x1
