"""Every problem has a code of one pattern, and the page of errors lists all of them and no other."""

import ast
import re
from collections.abc import Iterator

import pytest

from bitplan.core.error_codes import errors_page, known_codes
from bitplan.core.errors import Problem, user_error
from tests.conftest import ROOT, SCRIPTS

CODE = re.compile(r"[A-Z]{3,}[A-Z0-9]*(-[A-Z0-9]+){1,4}")
NAMES = [code.name for code in known_codes()]
AREAS = {name.split("-")[0] for name in NAMES}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SCRIPTS.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def of_errors(tree: ast.Module) -> set[str]:
    """What a module imports from core/errors.py; other modules have other classes called Problem."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "bitplan.core.errors"
        for alias in node.names
    } & {"Problem", "user_error"}


def problems() -> Iterator[tuple[str, ast.Call]]:
    """Every call that creates a problem, with its place."""
    for name, tree in trees():
        made = of_errors(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in made:
                yield f"{name}:{node.lineno}", node


def first_arguments() -> Iterator[tuple[str, ast.expr]]:
    yield from ((where, call.args[0]) for where, call in problems())


def literals() -> set[str]:
    """Every text in the scripts that reads as a code of a known area."""
    return {
        node.value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if CODE.fullmatch(node.value) and node.value.split("-")[0] in AREAS
    }


def test_a_problem_cannot_be_created_without_a_code():
    with pytest.raises(TypeError):
        Problem("plan.json", "is empty")
    with pytest.raises(TypeError):
        user_error("plan.json", "is empty")


def test_every_problem_says_what_to_do():
    assert [where for where, call in problems() if len(call.args) < 4] == []


def test_every_literal_code_has_the_pattern_and_is_listed():
    given = [(where, node.value) for where, node in first_arguments() if isinstance(node, ast.Constant)]
    assert len(given) > 200
    assert [each for each in given if not CODE.fullmatch(each[1]) or each[1] not in NAMES] == []


def test_a_code_that_is_no_literal_comes_from_a_table_of_codes():
    others = {ast.unparse(node) for _, node in first_arguments() if not isinstance(node, ast.Constant)}
    assert others == {"code", "fault[0]", "CODES.get(error['type'], 'SETTINGS-INVALID')"}


def test_the_table_lists_each_code_in_use_once_with_its_meaning_and_remedy():
    assert sorted(NAMES) == sorted(literals())
    assert len(set(NAMES)) == len(NAMES)
    assert all(code.meaning and code.remedy for code in known_codes())


def test_the_page_of_errors_is_up_to_date():
    assert (ROOT / "docs/errors.md").read_text() == errors_page(), "run scripts/write_config.py --fix"
