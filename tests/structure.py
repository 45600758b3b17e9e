"""The structure of a checkout by its imports: rooms, the arrows between them, floors, arrows upwards, circles.

    python tests/structure.py                    this checkout
    python tests/structure.py BEFORE AFTER       others, one after the other
    python tests/structure.py --list             with the names of circles and of arrows upwards

A room is a file, or with its files a folder. An arrow leads from a room to another that a file of it imports, anywhere
in its text: imports inside functions count. Rooms that import each other, directly or over others, are a circle. Floors
are as many as the longest way down, a circle being on one floor. Arrows upwards are those that do not lead strictly
down the floors that the checkout's own ``tests/test_floors.py`` declares for these rooms; where it declares none, the
fewest that would lead up however the rooms were stacked.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

FOLDERS = {
    "fwbench": "fwbench",
    "fwbench.problems": "problems",
    "fwbench.solvers": "solvers",
    "benchmarks": "benchmarks",
}
VIEWS = (  # (name, package, depth of a room's name below it; 0: files)
    ("fwbench, problems and solvers a room each", "fwbench", 1),
    ("fwbench with problems/ and solvers/, files", "fwbench", 0),
    ("problems/, files", "fwbench.problems", 0),
    ("solvers/, files", "fwbench.solvers", 0),
    ("solvers/, rooms", "fwbench.solvers", 1),
    ("benchmarks/, files", "benchmarks", 0),
    ("benchmarks/, rooms", "benchmarks", 1),
)
Arrows = Mapping[str, Collection[str]]


def modules(checkout: Path) -> dict[str, Path]:
    """The files of a checkout by the names of their modules; a package has its own, that of ``__init__.py``."""
    return {
        ".".join((package, *path.relative_to(checkout / folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for package, folder in FOLDERS.items()
        for path in sorted((checkout / folder).rglob("*.py"))
    }


def imports(module: str, files: Mapping[str, Path]) -> set[str]:
    """The modules that a module imports, anywhere in its text, those that are no file of ``files`` included."""
    path, found = files[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {name if (name := f"{base}.{alias.name}") in files else base for alias in node.names}
    return found


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def arrows(files: Mapping[str, Path], package: str, depth: int = 0) -> dict[str, set[str]]:
    """Where the arrows of each room of a package lead.

    Args:
        depth: how much of a module's name below the package is its room's; 0 for all of it.
    """
    rooms = {name: ".".join(_below(name, package)[: depth or None]) for name in files if _is_room(name, files, package)}
    found: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for name, room in rooms.items():
        for other in imports(name, files):
            found[room] |= {rooms[other]} - {room} if other in rooms else set()
            if name.startswith("benchmarks."):  # run by its path, a file finds what lies beside it
                beside = f"{name.rpartition('.')[0]}.{other}"
                found[room] |= {rooms[beside]} - {room} if beside in rooms else set()
    return found


def _below(name: str, package: str) -> list[str]:
    return name.removeprefix(package).strip(".").split(".")


def _is_room(name: str, files: Mapping[str, Path], package: str) -> bool:
    """Whether it lies below the package and has more than a docstring."""
    text = _parsed(files[name]).body
    return name.startswith(f"{package}.") and not all(isinstance(part, ast.Expr) for part in text)


def circles(graph: Arrows) -> list[list[str]]:
    """The sets of rooms that all reach one another, largest first."""
    reached = {room: _reached(graph, room) for room in graph}
    found = {
        tuple(sorted(other for other in reached[room] if room in reached[other])) for room in graph if reached[room]
    }
    return sorted((list(rooms) for rooms in found if len(rooms) > 1), key=lambda rooms: (-len(rooms), rooms))


def _reached(graph: Arrows, room: str) -> set[str]:
    found: set[str] = set()
    left = [room]
    while left:
        new = set(graph[left.pop()]) - found
        found |= new
        left += new
    return found


def floors(graph: Arrows) -> int:
    """Rooms on the longest way down, a circle counted as one."""
    whole = {room: "+".join(rooms) for rooms in circles(graph) for room in rooms}
    merged: dict[str, set[str]] = {}
    for room, others in graph.items():
        own = whole.get(room, room)
        merged.setdefault(own, set()).update({whole.get(other, other) for other in others} - {own})

    @cache
    def height(room: str) -> int:
        return 1 + max(map(height, merged[room]), default=0)

    return max(map(height, merged), default=0)


def upwards(graph: Arrows, declared: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The arrows that do not lead strictly down: the declared floors, from the ground, or the best ones there are."""
    if declared:
        floor = {room: at for at, words in enumerate(declared) for room in words.split()}
        return [(room, other) for room in graph for other in sorted(graph[room]) if floor[other] >= floor[room]]
    return [arrow for rooms in circles(graph) for arrow in _fewest_up(graph, rooms)]


def _fewest_up(graph: Arrows, rooms: Sequence[str]) -> list[tuple[str, str]]:
    """Over all orders of the rooms, from the ground, the least set of arrows from a room to a later one."""

    @cache
    def stacked(below: frozenset[str]) -> tuple[int, tuple[str, ...]]:
        if not below:
            return 0, ()
        options = []
        for top in sorted(below):
            count, order = stacked(below - {top})
            options.append((count + sum(top in graph[room] for room in order), (*order, top)))
        return min(options)

    _, order = stacked(frozenset(rooms))
    return [(room, other) for at, room in enumerate(order) for other in order[at + 1 :] if other in graph[room]]


def declared(checkout: Path, rooms: Iterable[str]) -> tuple[str, ...]:
    """The floors that ``tests/test_floors.py`` has for these rooms: a tuple of strings that name them all."""
    path, wanted = checkout / "tests" / "test_floors.py", set(rooms)
    for node in _parsed(path).body if path.exists() else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            texts = [str(part.value) for part in node.value.elts if isinstance(part, ast.Constant)]
            if wanted and wanted <= {word for text in texts for word in text.split()}:
                return tuple(texts)
    return ()


def lines(checkout: Path, listed: bool) -> Iterable[str]:
    """The table of a checkout."""
    files = modules(checkout)
    yield f"{'':44}{'rooms':>7}{'floors':>8}{'arrows':>8}{'upwards':>9}{'circles':>9}"
    for title, package, depth in VIEWS:
        graph = arrows(files, package, depth)
        known = declared(checkout, graph)
        up, rounds = upwards(graph, known), circles(graph)
        counts = f"{len(graph):7}{floors(graph):8}{sum(map(len, graph.values())):8}{len(up):9}{len(rounds):9}"
        yield f"{title:44}{counts}{'  (floors declared)' if known else ''}".rstrip()
        if listed:
            yield from (f"    up: {room} -> {other}" for room, other in up)
            yield from (f"    circle: {', '.join(rooms)}" for rooms in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--list", action="store_true", help="name circles and arrows upwards")
    options = parser.parse_args()
    for checkout in options.checkouts:
        print(checkout, *lines(checkout, options.list), sep="\n")


if __name__ == "__main__":
    main()
