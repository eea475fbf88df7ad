"""What binds an allocation: which formats protection, floors and groups leave to each layer."""

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.search.allocation.constraints import Constraints, allowed_formats, rule_of
from bitplan.sensitivity.table import SensitivityTable

LAYERS, FORMATS = ("b.0.q", "b.0.k", "b.1.q", "b.1.k"), ("q2", "q4", "q6", "q8")
SIZE = np.array([[2.0, 4, 6, 8]] * 4)


def table(lacking=()) -> SensitivityTable:
    """Four layers in four formats; `lacking` lists the (layer, format) without a row."""
    kld = 1 / SIZE
    size = SIZE.copy()
    for layer, form in lacking:
        kld[layer, form], size[layer, form] = np.inf, 0
    return SensitivityTable(LAYERS, FORMATS, np.full(4, 8.0), size, kld, ("attn_q", "attn_k") * 2)


def allowed(made=None, groups=(), protect=(), floor=()) -> list[str]:
    """The formats that each layer may have, in a word each."""
    rules = [[rule_of(text, flag) for text in texts] for flag, texts in (("--protect", protect), ("--floor", floor))]
    unit, can = allowed_formats(made or table(), Constraints(groups, *rules))
    return ["".join(form[1] for form, yes in zip(FORMATS, row, strict=True) if yes) for row in can[unit]]


def refused(**bound) -> list[str]:
    with pytest.raises(UserError) as caught:
        allowed(**bound)
    return [str(problem) for problem in caught.value.problems]


def test_a_layer_may_have_the_formats_that_it_has_rows_for():
    assert allowed(table([(1, 0), (2, 3)])) == ["2468", "468", "246", "2468"]


def test_a_group_may_have_the_formats_that_all_its_layers_have():
    assert allowed(table([(1, 0), (2, 3)]), groups=("a", "a", "", "")) == ["468", "468", "246", "2468"]


def test_the_last_rule_that_matches_holds():
    assert allowed(protect=["b.*=q4", "b.0.?=q6", "b.0.k=q8"]) == ["6", "8", "4", "4"]
    assert allowed(floor=["*=q6", "b.1.*=q4"]) == ["68", "68", "468", "468"]


def test_a_pattern_alone_protects_with_the_largest_format_that_the_whole_group_has():
    made = table([(1, 3)])
    assert allowed(made, protect=["b.0.*"]) == ["8", "6", "2468", "2468"]
    assert allowed(made, groups=("a", "a", "", ""), protect=["b.0.q"]) == ["6", "6", "2468", "2468"]


def test_protection_goes_before_floors():
    assert allowed(protect=["b.0.q=q2"], floor=["*=q6"]) == ["2", "68", "68", "68"]


def test_floors_hold_by_category_too():
    assert allowed(floor=["category:attn_k=q6"]) == ["2468", "68", "2468", "68"]


def test_where_a_layer_lacks_the_floor_its_bits_in_other_layers_count():
    assert allowed(table([(0, 2)]), floor=["*=q6"]) == ["8", "68", "68", "68"]


def test_a_floor_for_one_layer_of_a_group_is_one_for_all_of_it():
    assert allowed(groups=("a", "a", "", ""), floor=["b.0.k=q6"]) == ["68", "68", "2468", "2468"]


def test_all_rules_that_fit_nothing_are_told_at_once():
    problems = refused(protect=["b.2.q=q4", "*=q5"], floor=["b.0.q", "category:mlp=q4"])
    beginnings = (
        "[ALLOCATE-NO-MATCH] --protect b.2.q=q4: ",
        "[ALLOCATE-UNKNOWN-FORMAT] --protect *=q5: ",
        "[ALLOCATE-NO-FORMAT] --floor b.0.q: ",
        "[ALLOCATE-NO-MATCH] --floor category:mlp=q4: ",
    )
    assert len(problems) == len(beginnings) and all(map(str.startswith, problems, beginnings)), problems


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        (
            {"made": table([(0, 1)]), "protect": ["*=q4"]},
            "[ALLOCATE-NO-ROW] --protect *=q4: ",
        ),
        ({"made": table([(0, 3)]), "floor": ["*=q8"]}, "[ALLOCATE-INFEASIBLE] layer b.0.q: "),
        (
            {"groups": ("a", "a", "", ""), "protect": ["b.0.q=q2", "b.0.k=q4"]},
            "[ALLOCATE-INFEASIBLE] group of b.0.q, b.0.k: ",
        ),
        (
            {"made": table([(0, 0), (0, 1), (1, 2), (1, 3)]), "groups": ("a", "a", "", "")},
            "[ALLOCATE-INFEASIBLE] group of b.0.q, b.0.k: ",
        ),
    ],
)
def test_layers_that_no_format_is_left_for_are_named(bound, told):
    assert refused(**bound)[0].startswith(told)
