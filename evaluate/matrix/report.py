"""The validation matrix as a table, as Markdown for a CI summary, as JSON, and as JUnit XML."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from ...configs.manifest import origin
from ...configs.sizes import size
from ..parity.result import Row
from .cells import Cell, Matrix, PackageReport

HEADINGS = ("target", "provider", "outcome", "mean KL", "top-1", "greedy", "prefill tok/s", "decode tok/s", "size")
"""Columns of the table, whose last one, without a heading, says why."""

# Not allowed in XML 1.0, whatever the encoding.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def table_rows(matrix: Matrix) -> list[tuple[str, ...]]:
    """Return a row of texts for each cell: `HEADINGS`, and the reason."""
    packages = {package.target: package for package in matrix.packages}
    return [_table_row(cell, packages[cell.target]) for cell in matrix.cells]


def _table_row(cell: Cell, package: PackageReport) -> tuple[str, ...]:
    kl, top1, greedy = (_figure(cell, name) for name in ("mean_kl", "top1_agreement", "greedy_agreement"))
    disk = size(package.size) if package.folder else "-"
    return (cell.target, cell.provider, cell.outcome, kl, top1, greedy, *_speeds(cell), disk, _reason(cell))


def _reason(cell: Cell) -> str:
    reason = cell.reason or ""
    if cell.speed_note is None or cell.speed_note in reason:
        return reason
    return f"{reason}; no speed: {cell.speed_note}".removeprefix("; ")


def _figure(cell: Cell, name: str) -> str:
    if cell.verification is None:
        return "-"
    value = next(row.value for row in cell.verification.rows if row.name == name)
    return f"{value:.3g}" if name == "mean_kl" else f"{100 * value:.1f}%"


def _speeds(cell: Cell) -> tuple[str, str]:
    if cell.speed is None:
        return "-", "-"
    return f"{cell.speed.prefill_tokens_per_second:.0f}", f"{cell.speed.decode_tokens_per_second:.1f}"


def verdict(matrix: Matrix) -> str:
    """Return one line: how many cells passed, failed and did not run."""
    counts = [f"{sum(cell.outcome == name for cell in matrix.cells)} {name}" for name in ("pass", "fail", "not run")]
    judged = [check for check in matrix.cross_checks if check.passed is not None]
    failed = sum(check.passed is False for check in judged)
    return f"{', '.join(counts)}; {len(judged) - failed} of {len(judged)} cross-checks pass"


def to_markdown(matrix: Matrix) -> str:
    """Return the whole report as Markdown."""
    weights = origin(matrix.source, matrix.revision, matrix.adapter)
    lines = [
        f"## {matrix.model}: validation matrix",
        "",
        f"{verdict(matrix)}. Against {weights} in float32 PyTorch, on {matrix.machine}, {matrix.created}.",
        "",
        *_markdown_table((*HEADINGS, "why, or where"), table_rows(matrix)),
    ]
    if matrix.cross_checks:
        headings = ("package", "against", "mean KL", "top-1", "must be at most", "")
        lines += ["", "Packages against each other:", "", *_markdown_table(headings, cross_rows(matrix))]
    if matrix.failures:
        lines += ["", "Failures:", "", *(f"- {_cell_text(failure)}" for failure in matrix.failures)]
    versions = ", ".join(f"{name} {version}" for name, version in matrix.versions.items())
    return "\n".join([*lines, "", f"With {versions}.", ""])


def cross_rows(matrix: Matrix) -> list[tuple[str, ...]]:
    """Return a row of texts for each cross-check."""
    return [
        (
            check.second,
            check.first,
            f"{check.mean_kl:.3g}",
            f"{100 * check.top1_agreement:.1f}%",
            "-" if check.threshold is None else f"{check.threshold:g}",
            {True: "pass", False: "fail", None: ""}[check.passed],
        )
        for check in matrix.cross_checks
    ]


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(_cell_text(cell) for cell in cells)} |"


def _cell_text(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def to_dict(matrix: Matrix) -> dict[str, Any]:
    """Return all of it as JSON values."""
    return {
        "passed": not matrix.failures,
        "failures": list(matrix.failures),
        "source": matrix.source,
        "revision": matrix.revision,
        "adapter": asdict(matrix.adapter) if matrix.adapter else None,
        "model": matrix.model,
        "machine": matrix.machine,
        "packages": [_package_dict(package) for package in matrix.packages],
        "cells": [_cell_dict(cell) for cell in matrix.cells],
        "cross_checks": [{**asdict(check), "passed": check.passed} for check in matrix.cross_checks],
        "required": list(matrix.required),
        "versions": dict(matrix.versions),
        "created": matrix.created,
        "seconds": matrix.seconds,
    }


def _package_dict(package: PackageReport) -> dict[str, Any]:
    rows = [{**asdict(row), "passed": row.passed} for row in package.rows]
    folder = str(package.folder) if package.folder else None
    return {
        "target": package.target,
        "folder": folder,
        "exported": package.exported,
        "size": package.size,
        "rows": rows,
        "error": package.error,
        "passed": package.passed,
    }


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {
        "target": cell.target,
        "provider": cell.provider,
        "outcome": cell.outcome,
        "reason": cell.reason,
        "verification": cell.verification.to_dict() if cell.verification else None,
        "speed": asdict(cell.speed) if cell.speed else None,
        "speed_note": cell.speed_note,
    }


def to_junit(matrix: Matrix) -> str:
    """Return the report as JUnit XML: a suite for each target, a case for each row on each provider."""
    root = ElementTree.Element("testsuites", name=f"phi3-onnx matrix {matrix.model}", time=f"{matrix.seconds:.1f}")
    for package in matrix.packages:
        suite = _suite(root, package.target)
        if package.error is not None:
            _case(suite, package.target, "package", failure=package.error)
        for row in package.rows:
            _row_case(suite, package.target, row)
        for cell in matrix.cells:
            if cell.target == package.target:
                _cell_cases(suite, cell)
    if matrix.cross_checks:
        suite = _suite(root, "cross-checks")
        for check in matrix.cross_checks:
            failure = str(check) if check.passed is False else None
            _case(suite, "cross-checks", f"{check.first} and {check.second}", failure=failure)
    for suite in root:
        for name, tag in (("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")):
            suite.set(name, str(len(suite.findall(tag))))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(root: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(root, "testsuite", name=name, errors="0")


def _cell_cases(suite: ElementTree.Element, cell: Cell) -> None:
    place = f"{cell.target}.{cell.provider}"
    failure = cell.reason if cell.outcome == "fail" else None
    skipped = cell.reason if cell.outcome == "not run" else None
    _case(suite, place, "runs", failure=failure, skipped=skipped, seconds=_seconds(cell))
    for row in cell.verification.rows if cell.verification else ():
        _row_case(suite, place, row)
    if cell.speed is not None:
        prefill, decode = _speeds(cell)
        text = f"prefill {prefill} tok/s, decode {decode} tok/s; {cell.speed.prompt_tokens} tokens, {cell.speed.engine}"
        _case(suite, place, "speed", output=text)
    elif cell.verification is not None:
        _case(suite, place, "speed", skipped=cell.speed_note)


def _seconds(cell: Cell) -> float:
    return cell.verification.seconds if cell.verification else 0.0


def _row_case(suite: ElementTree.Element, place: str, row: Row) -> None:
    limit = "" if row.threshold is None else f", must be {row.bound} {row.threshold:g}"
    text = f"{row.value:.4g}{limit}; {row.detail}"
    _case(suite, place, row.name, failure=text if row.passed is False else None, output=text)


def _case(
    suite: ElementTree.Element,
    place: str,
    name: str,
    *,
    failure: str | None = None,
    skipped: str | None = None,
    output: str | None = None,
    seconds: float = 0.0,
) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=place, name=_xml(name), time=f"{seconds:.1f}")
    if failure is not None:
        ElementTree.SubElement(case, "failure", message=_xml(failure))
    elif skipped is not None:
        ElementTree.SubElement(case, "skipped", message=_xml(skipped))
    if output is not None:
        ElementTree.SubElement(case, "system-out").text = _xml(output)


def _xml(text: str) -> str:
    return _NO_XML.sub("?", text)
