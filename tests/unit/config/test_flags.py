"""Flags made from settings models: types, ranges, choices, defaults; and the words of the same flags."""

import argparse
from typing import Annotated, Literal

import pytest
from pydantic import Field

from bitplan.config.flags import add_settings_flags, cli_flags, flag_values
from bitplan.core.section import Flag, Section


class Inner(Section):
    """A section of its own."""

    depth: int = Field(1, description="never a flag of the outer section")


class Sample(Section):
    """A setting of every kind."""

    method: Literal["sample"] = "sample"
    step_size: float = Field(0.5, gt=0, le=2, description="a range, 50 % of it")
    pieces: int | None = Field(None, ge=1, description="null is no flag")
    windows: Annotated[int | None, Flag(null="all")] = Field(4, ge=1, description="null has a word")
    order: Literal["up", "down"] = Field("up", description="words")
    anchors: Literal[1, 2, "all"] | None = Field(None, description="numbers and a word")
    target: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(0.75, description="a number or a word")
    widths: list[Annotated[int, Field(ge=2, le=8)]] = Field([2, 4], description="several")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field({"a": 0.25}, description="by name")
    sym: bool = Field(True, description="on or off")
    quick: Annotated[bool, Flag(switch=True)] = Field(False, description="given or absent")
    alphas: Annotated[list[float], Flag(empty="no-alphas")] = Field([0.5], description="empty has a flag of its own")
    draws: Annotated[int, Flag(when=("order", "down"))] = Field(16, description="only when counting down")
    size_of: Annotated[str | None, Flag(by_rule=True)] = Field(None, description="the rule passes a file")
    later: Annotated[str | None, Flag(other_step=True)] = Field(None, description="another step reads it")
    names: Annotated[list[str], Flag(name="tasks")] = Field([], description="another name")
    inner: Inner = Inner()


def parsed(*words: str, **overrides) -> argparse.Namespace:
    flags = argparse.ArgumentParser(exit_on_error=False)
    add_settings_flags(flags, Sample, **overrides)
    flags.add_argument("--no-alphas", action="store_true")
    return flags.parse_args(list(words))


def test_defaults_are_those_of_the_model():
    given = parsed()
    assert (given.step_size, given.pieces, given.windows, given.order, given.target) == (0.5, None, 4, "up", 0.75)
    assert (given.widths, given.weights, given.sym, given.quick) == ([2, 4], [("a", 0.25)], True, False)
    assert not {"method", "inner", "depth", "later"} & set(vars(given))


def test_values_have_the_types_of_the_model():
    given = parsed("--step-size", "2", "--windows", "all", "--target", "auto", "--anchors", "2", "--no-sym", "--quick")
    assert (given.step_size, given.windows, given.target, given.anchors) == (2.0, None, "auto", "2")
    assert (given.sym, given.quick) == (False, True)


def test_a_list_that_is_given_replaces_the_default_and_may_be_repeated():
    assert parsed("--widths", "3", "--widths", "8", "6").widths == [3, 8, 6] and parsed().widths == [2, 4]
    assert parsed("--weights", "b=1", "c=2").weights == [("b", 1.0), ("c", 2.0)]


@pytest.mark.parametrize(
    "words",
    [
        ("--step-size", "0"), ("--step-size", "2.1"), ("--step-size", "nan"), ("--pieces", "0"), ("--windows", "none"),
        ("--order", "left"), ("--anchors", "3"), ("--target", "1.5"), ("--target", "never"), ("--widths", "9"), ("--weights", "b=-1"),
        ("--weights", "b"),
    ],
)  # fmt: skip
def test_what_the_model_refuses_the_flag_refuses(words):
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parsed(*words)


def test_a_command_may_differ_where_it_says_so_and_only_for_settings_that_exist():
    assert parsed(step_size={"default": None}).step_size is None
    with pytest.raises(ValueError, match="Sample has no stepsize"):
        parsed(stepsize={"default": None})


def test_the_words_of_settings_are_read_back_as_the_same_values():
    sample = Sample(windows=None, target="auto", widths=[8], weights={"x": 1.0}, sym=False, names=["t"], alphas=[])
    given = parsed(*cli_flags(flag_values(sample)).split())
    assert (given.windows, given.target, given.widths, given.weights) == (None, "auto", [8], [("x", 1.0)])
    assert (given.sym, given.tasks, given.no_alphas, given.order) == (False, ["t"], True, "up")


def test_flags_that_are_not_for_this_value_are_left_out():
    values = flag_values(Sample())
    assert not {"draws", "size-of", "no-alphas", "method", "inner"} & set(values) and values["quick"] is None
    assert flag_values(Sample(order="down"))["draws"] == 16 and flag_values(Sample(quick=True))["quick"] is True
    assert set(flag_values(Sample(), only=("order",))) == {"order"}
