"""The layers of the library: imports run one way, files stay small, public functions say what they return."""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from bitplan.search import registry
from tests.conftest import SCRIPTS

LIBRARY = SCRIPTS / "bitplan"
# From the bottom to the top: a folder may import those before it in this list, never those behind it.
LAYERS = (
    "core", "demo", "formats", "models", "plans", "reference", "statistics", "evaluate", "rounding", "sensitivity", "runtimes", "search",
    "report", "config", "cli", "workflow", "console",
)  # fmt: skip
# The method folders of search/: none imports another. What they share stands beside them or in knapsack/.
METHODS = tuple(registry.METHODS)
FILES = sorted(LIBRARY.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(SCRIPTS).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """The modules of the library that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bitplan":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "bitplan")


def part(module: str, depth: int = 1) -> str:
    return [*module.split("."), "", ""][depth]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_layer_and_those_below(module):
    own = part(module)
    above = [
        name for name in imported(MODULES[module]) if own and LAYERS.index(part(name) or "core") > LAYERS.index(own)
    ]
    assert above == []


def test_every_folder_has_a_layer():
    folders = {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(LAYERS)


def test_the_root_of_the_library_holds_folders_alone():
    assert [path.name for path in LIBRARY.glob("*.py")] == ["__init__.py"]


def test_no_search_method_imports_another():
    for module, path in MODULES.items():
        own = part(module, 2)
        if part(module) == "search" and own in METHODS:
            others = {part(name, 2) for name in imported(path) if part(name) == "search"} - {own}
            assert not others & set(METHODS), module


def test_no_two_modules_import_each_other():
    edges = {module: set(imported(path)) for module, path in MODULES.items()}
    done: set[str] = set()

    def follow(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for name in edges.get(module, ()):
                follow(name, (*above, module))
            done.add(module)

    for module in MODULES:
        follow(module, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_is_over_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_file_of_the_tests_is_over_400_lines():
    tests = sorted((SCRIPTS.parent / "tests").rglob("*.py"))
    assert [path.name for path in tests if len(path.read_text().splitlines()) > 400] == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_function_is_over_60_lines_and_public_ones_have_a_docstring_and_types(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            where = f"{path.name}:{node.lineno} {node.name}"
            assert node.end_lineno - node.lineno < 60, where
    for node in public(ast.parse(path.read_text())):
        assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"


def test_every_command_says_what_it_writes():
    missing = [
        f"{path.name}: {node.name}"
        for path in sorted(SCRIPTS.glob("*.py"))
        for node in public(ast.parse(path.read_text()))
        if not ast.get_docstring(node)
    ]
    assert missing == []


def public(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The functions and methods that other modules may call."""
    inside = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    for scope in inside:
        yield from (n for n in scope.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))


def test_the_layers_are_in_the_order_of_the_architecture_page():
    page = SCRIPTS.parent / "docs" / "architecture.md"
    places = [page.read_text().index(f"`{layer}/`") for layer in reversed(LAYERS) if layer != "demo"]
    assert all(first < second for first, second in pairwise(places))
