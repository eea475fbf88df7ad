"""Versions of the code behind a command, so that an edit reruns the steps that depend on the edited code, and no others.

Snakemake does not look into the modules that a command imports. Each rule therefore carries, as a parameter, one hash over the
content of every local module behind its command. Only content counts: comments, docstrings, layout, import statements and the
places of modules do not, so that moving a module, or splitting one in two, reruns nothing.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from bitplan.core.places import PACKAGE, scripts_folder
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.workflow.inputs import runtime_of, told_runtimes

# Where local modules are looked for: beside the commands, and where the library is (the same folder in a checkout).
SCRIPTS = (scripts_folder(), PACKAGE.parent)
PARTS = ("body", "orelse", "finalbody", "handlers", "cases")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)
TABLES = "bitplan/core/tables"
# Imports that change no result, as (importer, imported), each the beginning of a path: how a model is fetched, since the files are
# checked against the hub's hashes; how a step's table is laid out on the terminal; what `three_way` prints, which no rule calls;
# which other runtimes there are, as `runtime_code` counts the one that a job is for, and `search_code` those that a search is told; what is imported for its type alone, or for `Runtime.holds`, which no step asks; the card that an
# export writes for `--card`, which no rule passes.
WITHOUT_EFFECT = (
    ("bitplan/cli/parser.py", "bitplan/models/hub"),
    ("bitplan/runtimes/export.py", "bitplan/runtimes/card"),
    *(
        (printing, TABLES)
        for printing in ("bitplan/plans/", "bitplan/search/", "bitplan/runtimes/", "eval_with_lm_eval.py")
    ),
    *(
        (importer, "bitplan/runtimes/registry")
        for importer in (
            "bitplan/runtimes/speed.py",
            "bitplan/search/optimal/command.py",
            "export_plan.py",
            "perplexity.py",
        )
    ),
    *(
        ("bitplan/runtimes/runtime.py", module)
        for module in ("bitplan/evaluate", "bitplan/reference", "bitplan/formats/pairs")
    ),
    *(("bitplan/report/three_way.py", module) for module in ("bitplan/report/metrics", TABLES)),
)
# Models of settings: a rule passes every value as a flag, which Snakemake compares, so that a declaration by itself changes no result.
DECLARATIONS = (
    "bitplan/config/settings.py",
    "bitplan/config/setting_errors.py",
    "bitplan/config/studies.py",
    "bitplan/core/section.py",
    "bitplan/search/plan_settings.py",
    "bitplan/search/*/settings.py",
)


@cache
def _located(module: str) -> Path | None:
    roots = [root.joinpath(*module.split(".")) for root in SCRIPTS]
    files = (path for base in roots for path in (base.with_suffix(".py"), base / "__init__.py"))
    return next((path for path in files if path.is_file()), None)


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


def _keep_content_(nodes: Iterable[ast.AST]) -> None:
    """Remove docstrings and import statements from a tree, given as its statements."""
    for node in nodes:
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        for part in PARTS:
            if inner := getattr(node, part, None):
                kept = [each for each in inner if not isinstance(each, IMPORTS)]
                setattr(node, part, kept)


@cache
def _read(path: Path) -> tuple[frozenset[str], frozenset[Path]]:
    """Return the hashes of a file's top-level statements and the local files that it imports: one parse, one walk."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    nodes = list(_statements([tree]))
    package = Path(_below(path)).parent.parts
    names = set().union(*(_named(node, package) for node in nodes))
    around = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    _keep_content_(nodes)
    hashes = frozenset(hashlib.sha256(ast.dump(node).encode()).hexdigest() for node in tree.body)
    return hashes, frozenset(found for name in names | around if name and (found := _located(name)))


def content_hashes(path: Path) -> frozenset[str]:
    """Return one SHA-256, in hexadecimal, for each top-level statement of a Python file; imports and docstrings do not count."""
    return _read(path)[0]


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """Return the local files that a file imports, anywhere in it, and the packages around them; those without effect on results left out."""
    skipped = tuple(imported for importer, imported in WITHOUT_EFFECT if _below(path).startswith(importer))
    return frozenset(file for file in _read(path)[1] if not _below(file).startswith(skipped))


def _below(path: Path) -> str:
    """Return a file's path from the innermost folder of local modules that holds it."""
    return min((path.relative_to(root).as_posix() for root in SCRIPTS if path.is_relative_to(root)), key=len)


@cache
def is_declaration(path: Path) -> bool:
    """Return whether a file only declares settings."""
    return any(fnmatchcase(_below(path), pattern) for pattern in DECLARATIONS)


def files_behind(command: str, *modules: str, declarations: bool = False) -> tuple[Path, ...]:
    """Return the paths of a command, of modules that it imports by name, and of all local code behind them, sorted; models of
    settings only when asked for."""
    waiting, seen = [SCRIPTS[0] / command, *filter(None, map(_located, modules))], set()
    while waiting:
        path = waiting.pop()
        if path not in seen and (declarations or not is_declaration(path)):
            seen.add(path)
            waiting.extend(imported_files(path))
    return tuple(sorted(seen))


def runtime_code(settings: Any, wildcards: Any, command: str, task: str) -> str:
    """Return the version of the code behind a command and a task ("write", "score", "time") of the runtime that a job is for."""
    runtime = runtime_of(wildcards)
    return code_version(command, runtime.code.get(task, RUNTIMES[runtime.name]))


def search_code(settings: Any, wildcards: Any, command: str) -> str:
    """Return the version of the code behind a search, and behind the verdicts, and sizes, of the runtimes that it is told."""
    limited = getattr(settings.every_plan[wildcards.plan], "max_size", None) is not None
    tasks, told = ("verdict", "size") if limited else ("verdict",), told_runtimes(settings, wildcards)
    return code_version(
        command, *(runtime_named(name).code.get(task, RUNTIMES[name]) for name in told for task in tasks)
    )


@cache
def templates_beside(path: Path) -> frozenset[str]:
    """Return the SHA-256, in hexadecimal, of each template in the folder of a Python file: a page is made of it as of code."""
    return frozenset(hashlib.sha256(file.read_bytes()).hexdigest() for file in path.parent.glob("*.j2"))


@cache
def code_version(command: str, *modules: str) -> str:
    """Return 16 hexadecimal digits that change when the code of a command, or of a local module behind it, does, or a template
    beside one.

    `modules` are those that the command imports by name, which no import statement shows: the runtime's.
    """
    files = files_behind(command, *modules)
    hashes = frozenset().union(*map(content_hashes, files), *map(templates_beside, files))
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()[:16]
