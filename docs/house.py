"""The project's structure as its imports have it: modules, rooms (folders) and the arrows between them.

`python docs/house.py` draws the picture in `docs/architecture.md` anew; a test holds that it is up to date.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[1]
PAGE = FOLDER / "docs" / "architecture.md"
FLOORS = (("configs",), ("quantize",), ("export", "runtime"), ("evaluate",), ("cli", "deploy"))
"""The top-level folders from the ground up. A module imports from its own folder and from the floors below."""

Modules = Mapping[str, Path]
Arrows = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Return the files of all modules, by the module's name without `phi3_onnx`, such as `runtime.text.tokenizer`."""
    files = (path.relative_to(FOLDER) for names in FLOORS for name in names for path in (FOLDER / name).rglob("*.py"))
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in sorted(files)}


def imports(module: str, known: Modules) -> Iterator[tuple[str, int]]:
    """Yield the project's modules that one imports, inside functions too, each with its line."""
    file = known[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse((FOLDER / file).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        named = node.module.split(".") if node.module else []
        if node.level or named[0] == "phi3_onnx":
            base = [*package[: len(package) - node.level + 1], *named] if node.level else named[1:]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield (whole if whole in known else ".".join(base)), node.lineno


def arrows(known: Modules) -> dict[str, set[str]]:
    """Return for each module those that it imports."""
    return {module: {target for target, _ in imports(module, known)} for module in known}


def rooms(known: Modules) -> dict[str, set[str]]:
    """Return for each room the rooms that it imports from.

    A room is a folder (`runtime.text` for `runtime.text.stops`), or a file beside such folders (`runtime.model`). A
    package's face (`__init__.py`) only hands names on, so what it imports does not count.
    """
    faces = {module for module, file in known.items() if file.name == "__init__.py"}
    divided = {face.split(".")[0] for face in faces if "." in face}
    folded: dict[str, set[str]] = defaultdict(set)

    def room(module: str) -> str:
        top, *inner = module.split(".")
        return ".".join([top, *inner[:1]]) if top in divided else top

    for module, targets in arrows(known).items():
        if module not in faces:
            folded[room(module)] |= {room(target) for target in targets} - {room(module)}
    return dict(folded)


def picture() -> str:
    """Return the rooms and their arrows as a Mermaid diagram. The ground, `configs`, is left out: all stand on it."""
    graph = {room: targets - {"configs"} for room, targets in sorted(rooms(modules()).items()) if room != "configs"}
    lines = ["flowchart TD"]
    for folder in (name for names in reversed(FLOORS) for name in names if name != "configs"):
        inside = [room for room in graph if room.partition(".")[0] == folder]
        if inside == [folder]:
            lines += [f"    {folder}[{folder}/]"]
        else:
            lines += [f"    subgraph {folder} [{folder}/]"]
            lines += [f"        {_node(room)}[{room.partition('.')[2]}]" for room in inside]
            lines += ["    end"]
    lines += [f"    {_node(room)} --> {_node(target)}" for room in graph for target in sorted(_direct(room, graph))]
    return "\n".join(lines)


def _direct(room: str, graph: Arrows) -> set[str]:
    """Return the rooms below one that no other room between leads to: the arrows that a picture needs."""
    reached: set[str] = set()
    stack = [below for target in graph[room] for below in graph.get(target, ())]
    while stack:
        target = stack.pop()
        if target not in reached:
            reached.add(target)
            stack += graph.get(target, ())
    return graph[room] - reached


def _node(room: str) -> str:
    return room.replace(".", "_")


def with_picture(page: str) -> str:
    """Return the page with the picture in its place."""
    before, start, rest = page.partition("```mermaid\n")
    _, end, after = rest.partition("```\n")
    return f"{before}{start}{picture()}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
