"""Short hashes of local modules, so that an edit reruns the steps that the edited code is behind, and no others.

Snakemake does not look into the modules that a command imports. Each rule therefore carries, as parameters, one
`module@hash` for every local module behind its command. The hash is of the syntax tree without docstrings:
comments, docstrings and layout may change without a rerun.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
PARTS = ("body", "orelse", "finalbody", "handlers", "cases")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def _located(module: str) -> Path | None:
    base = SCRIPTS.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _named(node: ast.AST, package: tuple[str, ...]) -> set[str]:
    """Return the modules that an import statement may mean, `from x import y` counting x and x.y."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else ()
        base = ".".join((*above, *filter(None, (node.module or "").split("."))))
        return {base} | {f"{base}.{alias.name}" for alias in node.names}
    return set()


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield statements and those inside them; expressions, most of a tree, hold none."""
    for node in body:
        yield node
        for part in PARTS:
            yield from _statements(getattr(node, part, ()))


def _without_docstrings_(nodes: Iterable[ast.AST]) -> None:
    """Take the docstrings out of a tree, given as its statements."""
    for node in nodes:
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


@cache
def _read(path: Path) -> tuple[str, frozenset[Path]]:
    """Return a file's hash and the local files that it imports. Every start of the workflow waits for this: one parse, one walk."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    nodes = list(_statements([tree]))
    package = path.relative_to(SCRIPTS).parent.parts
    names = set().union(*(_named(node, package) for node in nodes))
    around = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    _without_docstrings_(nodes)
    digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:10]
    return digest, frozenset(found for name in names | around if name and (found := _located(name)))


def module_hash(path: Path) -> str:
    """Return 10 hexadecimal digits that change when the code of a file does."""
    return _read(path)[0]


def imported_files(path: Path) -> frozenset[Path]:
    """Return the local files that a file imports, anywhere in it, and the packages around them."""
    return _read(path)[1]


def code_versions(command: str) -> dict[str, str]:
    """Return {path below scripts/: hash} of a command and of all local code behind it, sorted by path."""
    waiting, seen = [SCRIPTS / command], {}
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen[path] = module_hash(path)
            waiting.extend(imported_files(path))
    return {path.relative_to(SCRIPTS).as_posix(): seen[path] for path in sorted(seen)}
