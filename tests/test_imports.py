"""The direction of imports: from the command line down to the configurations, room by room, and never in a circle."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
FLOORS = (("configs",), ("quantize",), ("export", "runtime"), ("evaluate",), ("cli",))
"""The top-level folders from the ground up: one imports its own floor's room and the floors below."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the project by its name without `phi3_onnx`, such as `runtime.text.tokenizer`."""
    files = [path.relative_to(FOLDER) for name in FLOOR for path in (FOLDER / name).rglob("*.py")]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(module: str, file: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """The project's modules that one imports, anywhere in it, with the lines."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse((FOLDER / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield (whole if whole in known else ".".join(base)), node.lineno


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between folders: `runtime.text.stops` -> `runtime.text`. Faces (`__init__.py`) do not count."""
    folded: dict[str, set[str]] = defaultdict(set)
    faces = {module for module, file in modules().items() if file.name == "__init__.py"}

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2]) if module in faces else ".".join(module.split(".")[:-1][:2])

    for module in graph.keys() - faces:
        folded[room(module)] |= {room(target) for target in graph[module]} - {room(module)}
    return folded


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: {target for target, _ in imports(module, file, known)} for module, file in known.items()}


def test_floors_are_kept() -> None:
    known = modules()
    upward = [
        f"{file}:{line} imports {target}, which is not below {module.partition('.')[0]}/"
        for module, file in known.items()
        for target, line in imports(module, file, known)
        if (here := module.partition(".")[0]) != (there := target.partition(".")[0]) and FLOOR[there] >= FLOOR[here]
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("folder", ["runtime", "export", "evaluate"])
def test_no_rooms_import_each_other(graph: dict[str, set[str]], folder: str) -> None:
    inside = {
        room: {target for target in targets if target.startswith(f"{folder}.")}
        for room, targets in rooms(graph).items()
        if room.startswith(f"{folder}.")
    }
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(f"rooms import each other: {' <- '.join(error.args[1])}")
