"""The house as docs/architecture.md has it: each room imports only from rooms above it, and nothing
runs in circles.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "robusttrain"
#: From the foundation up: a room imports from those before it, and from itself.
ROOMS = (
    *(
        "core",
        "storage",
        "data",
        "models",
        "attacks",
        "defenses",
        "evaluation",
        "transfer",
        "reporting",
    ),
    *("training", "config", "running", "commands"),
)
#: What may stand outside of rooms.
LOOSE = {"__init__.py", "__main__.py", "py.typed"}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def modules() -> dict[str, Path]:
    return {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of this package that a file imports, wherever in it, for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in known}


def test_nothing_is_loose():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} <= LOOSE
    assert {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")} == set(ROOMS)


def test_no_arrow_runs_upward():
    known, rank = modules(), {room: number for number, room in enumerate(ROOMS)}
    upward = []
    for name, path in known.items():
        room = name.split(".")[1] if "." in name and path.parent != PACKAGE else None
        for other in imported(path, known):
            above = other.split(".")[1] if "." in other else None
            if room is None:
                continue  # the front door names what it hands out
            if above is None or rank[above] > rank[room]:
                upward.append(f"{name} imports {other}")
    assert not upward, "\n".join(sorted(upward))


def test_no_circle():
    known = modules()
    # A package's __init__ only gathers what stands in its modules.
    graph = {
        name: imported(path, known) - {name}
        for name, path in known.items()
        if path.name != "__init__.py"
    }
    graph = {name: {other for other in others if other in graph} for name, others in graph.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


def test_attacks_open_no_files_and_only_commands_speak():
    opening = {"open", "load_weights", "read_tensors", "read_torch", "load"}
    for name, path in modules().items():
        room = name.split(".")[1] if "." in name else ""
        called = [
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        if room == "attacks":
            assert not opening & {*called}, name
        assert "print" not in called, name
        if room not in ("commands", ""):
            heard = imported(path, {"robusttrain.core.console": path})
            assert not heard, f"{name} speaks: take a Telling"


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports from the second."""
    known = modules()
    pairs = {
        (name.split(".")[1], other.split(".")[1])
        for name, path in known.items()
        for other in imported(path, known)
        if path.parent != PACKAGE and "." in other
    }
    return {(room, other) for room, other in pairs if room != other}


def counted() -> str:
    """What docs/architecture.md says."""
    return f"{len(ROOMS)} rooms, {len(arrows())} arrows between them"


def test_the_page_has_what_is_counted():
    assert f"counts: {counted()}." in (ROOT / "docs" / "architecture.md").read_text()


if __name__ == "__main__":
    print(counted())
