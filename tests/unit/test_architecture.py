"""The shape of the code, read from its syntax trees: who imports whom, and what stands where."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("server", "persist", "tools")

# From the ground up. A name stands for a module or for all of a package; a module imports what stands on lower floors
# and, inside its own package, what does not import it.
FLOORS: list[set[str]] = [
    {"server.errors"},
    {
        "server.commands", "server.config", "server.failpoints", "server.listeners", "server.logs",
        "server.message_socket", "server.messages", "server.stop_signal",
    },
    {"server.shm", "server.journal"},
    {"server.child", "server.data_directory", "server.redo", "server.rules", "server.shared"},
    {"server.batch", "server.command_queue"},
    {"server.idempotency"},
    {"server.http", "persist"},
    {"server.takeover"},
    {"server.manager", "server.worker", "persist.persister", "persist.writer"},
    {"server.supervisor"},
    {"run"},
    {"tools"},
]  # fmt: skip
PROCESSES = {"server.worker", "server.manager", "persist.persister", "persist.writer"}
# `except Exception` stands at the boundaries of a process, a request and a writer's batch
BOUNDARIES = {"server.child", "server.http.protocol", "server.http.exchange", "persist.store"}
PRINTING = {"run", "server.supervisor"}  # and all of tools


def name_of(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def product() -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the product."""
    paths = [ROOT / "run.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
    return {name_of(path): ast.parse(path.read_text(), str(path)) for path in paths if path.name != "__init__.py"}


@cache
def packages() -> frozenset[str]:
    return frozenset(name_of(path) for package in PACKAGES for path in (ROOT / package).rglob("__init__.py"))


@cache
def imports(name: str) -> frozenset[str]:
    """Return the modules of this repository that a module imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(product()[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if node.module in packages() else node.module)
    return frozenset(module for module in found if module.partition(".")[0] in (*PACKAGES, "run", "tests"))


def place_of(name: str) -> tuple[int, str]:
    """Return the floor of a module and the entry it stands there by; the longest entry that fits counts."""
    places = [
        (floor, entry)
        for floor, entries in enumerate(FLOORS)
        for entry in entries
        if name == entry or name.startswith(entry + ".")
    ]
    assert places, f"{name} has no floor: give it one in FLOORS"
    return max(places, key=lambda place: len(place[1]))


def nodes(*prefixes: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of the modules under these names."""
    for name, tree in product().items():
        if name.startswith(prefixes):
            for node in ast.walk(tree):
                yield name, node


def where(name: str, node: ast.AST) -> str:
    return f"{name}:{getattr(node, 'lineno', 0)}"


def is_attribute(node: ast.AST, module: str, *names: str) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == module
    )


def is_from(node: ast.AST, module: str, *names: str) -> bool:
    return (
        isinstance(node, ast.ImportFrom) and node.module == module and any(alias.name in names for alias in node.names)
    )


# ---- imports ---------------------------------------------------------------------------------------------------


def test_the_walk_sees_the_product() -> None:
    assert set(product()) >= PROCESSES | {"run", "server.shm.layout", "tools.load"}
    assert imports("server.manager") >= {"server.batch", "server.shm.layout", "server.takeover"}


def test_a_module_imports_lower_floors_only() -> None:
    wrong = []
    for name in product():
        floor, entry = place_of(name)
        for imported in imports(name):
            imported_floor, imported_entry = place_of(imported)
            is_own_package = entry == imported_entry and entry != name
            if imported_floor > floor or (imported_floor == floor and not is_own_package):
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_no_imports_go_round_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done and name in product():
            for imported in imports(name):
                visit(imported, (*path, name))
            done.add(name)

    for name in product():
        visit(name, ())


def test_processes_never_import_each_other() -> None:
    assert {name: imports(name) & PROCESSES for name in PROCESSES} == {name: frozenset() for name in PROCESSES}


def test_only_the_supervisor_imports_a_process() -> None:
    assert {name for name in product() if imports(name) & PROCESSES} <= {"server.supervisor"}


def test_nothing_imports_the_tools_or_the_tests() -> None:
    wrong = {
        name: imported
        for name in product()
        for imported in imports(name)
        if imported.startswith("tests") or (imported.startswith("tools") and not name.startswith("tools"))
    }
    assert not wrong


def test_packages_are_empty() -> None:
    inits = [path for top in (*PACKAGES, "tests") for path in (ROOT / top).rglob("__init__.py")]
    assert len(inits) > 6
    assert [path for path in inits if path.read_bytes()] == []


# ---- what stands where -----------------------------------------------------------------------------------------


def test_only_run_reads_the_command_line_and_the_environment() -> None:
    wrong = [
        where(name, node)
        for name, node in nodes("server", "persist")
        if is_attribute(node, "os", "environ", "environb", "getenv")
        or is_attribute(node, "sys", "argv")
        or is_from(node, "os", "environ", "getenv")
        or is_from(node, "sys", "argv")
    ]
    assert not wrong


@pytest.mark.parametrize("forbidden", ["struct", "ctypes"])
def test_shared_memory_is_written_word_by_word_and_never_packed(forbidden: str) -> None:
    """`struct.pack_into` zeroes before it writes: readers saw the zeroes."""
    wrong = [
        where(name, node)
        for name, node in nodes("server.shm")
        if (isinstance(node, ast.Import) and any(alias.name == forbidden for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == forbidden)
        or (isinstance(node, ast.Attribute) and node.attr == "pack_into")
    ]
    assert not wrong


def test_words_of_shared_memory_are_named_and_not_numbered_outside_of_it() -> None:
    """`words[layout.PUBLISHED_SEQ]`, never `words[11]`."""
    wrong = [
        where(name, node)
        for name, node in nodes("server", "persist", "tools")
        if isinstance(node, ast.Subscript)
        and not name.startswith("server.shm")
        and (
            (isinstance(node.value, ast.Name) and node.value.id in ("words", "counters", "block"))
            or (isinstance(node.value, ast.Attribute) and node.value.attr in ("words", "_words", "_counters"))
        )
        and isinstance(node.slice, ast.Constant)
    ]
    assert not wrong


def test_any_exception_is_caught_at_the_three_boundaries_only() -> None:
    wrong = [
        where(name, node)
        for name, node in nodes("server", "persist", "run")
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        and name not in BOUNDARIES
        and not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in node.body)  # clean up, go on up
    ]
    assert not wrong


def test_only_the_start_and_the_tools_print() -> None:
    wrong = [
        where(name, node)
        for name, node in nodes("server", "persist", "run")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if name not in PRINTING
    ]
    assert not wrong


def test_no_locks_between_processes() -> None:
    """A killed holder of a multiprocessing lock keeps it for ever."""
    forbidden = {"Lock", "RLock", "Queue", "SimpleQueue", "Event", "Semaphore", "Condition", "Value", "Array"}
    wrong = [
        where(name, node)
        for name, node in nodes("server", "persist", "run")
        if is_attribute(node, "multiprocessing", *forbidden)
        or is_attribute(node, "_CONTEXT", *forbidden)
        or is_from(node, "multiprocessing", *forbidden)
    ]
    assert not wrong


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in product().items() if not ast.get_docstring(tree)] == []


def test_tests_never_sleep() -> None:
    wrong = [
        where(name_of(path), node)
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if is_attribute(node, "time", "sleep")
        or is_from(node, "time", "sleep")
        or is_attribute(node, "asyncio", "sleep")
    ]
    assert not wrong
