"""The direction of imports: from the command line down to the configurations, room by room, and never in a circle."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

import house

FLOOR = {name: floor for floor, names in enumerate(house.FLOORS) for name in names}


def circle(graph: Mapping[str, set[str]]) -> str | None:
    """Return what imports each other, in a line; None where nothing does."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return None


def test_imports_go_down() -> None:
    known = house.modules()
    upward = [
        f"{known[module]}:{line} imports {target}, which is not below {module.partition('.')[0]}/"
        for module in known
        for target, line in house.imports(module, known)
        if (here := module.partition(".")[0]) != (there := target.partition(".")[0]) and FLOOR[there] >= FLOOR[here]
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other() -> None:
    assert circle(house.arrows(house.modules())) is None


def test_no_rooms_import_each_other() -> None:
    assert circle(house.rooms(house.modules())) is None


def test_a_circle_is_named() -> None:
    assert set((circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) or "").split(" <- ")) == {"a", "b", "c"}


def test_the_picture_in_the_documentation_is_up_to_date() -> None:
    page = house.PAGE.read_text(encoding="utf-8")
    assert house.with_picture(page) == page, "run: python docs/house.py"
