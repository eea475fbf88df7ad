"""Every command's parser can be built by importing the command: nothing runs, and its help says what is required and what is the default."""

import argparse
import importlib
import shlex

import pytest

from bitplan.cli.help import grouped
from bitplan.console import main as console
from tests.conftest import SCRIPTS

COMMANDS = sorted(path.stem for path in SCRIPTS.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    return importlib.import_module(name).build_parser()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_imported_for_its_parser(name):
    assert isinstance(parser_of(name), argparse.ArgumentParser)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_one_spelling_of_a_flag_and_says_something_about_each(name):
    actions = [action for action in parser_of(name)._actions if action.option_strings]
    assert [flag for action in actions for flag in action.option_strings if "_" in flag] == []
    assert [action.dest for action in actions if len(action.option_strings) > 1 and action.nargs != 0] == []
    assert [action.dest for action in actions if not action.help] == []


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"set_up"}))
def test_help_marks_what_is_required_and_shows_no_default_that_says_nothing(name):
    parser = parser_of(name)
    shown = " ".join(parser.format_help().split())
    required = [action for action in parser._actions if action.required and action.option_strings]
    assert shown.count("(required)") == len(required)
    assert "(default: None)" not in shown and "(default: [])" not in shown


PROGRAMS = [*sorted(set(COMMANDS) - {"set_up"}), *(f"bitplan.console.{name}" for name in console.COMMANDS)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_ends_with_examples_that_the_parser_takes(name):
    parser = parser_of(name)
    script = {"opt_enhanced": "sparsegpt_enhanced"}.get(name, name)  # the same command under another name
    called = ("bitplan", name.rpartition(".")[2]) if "." in name else ("python", f"scripts/{script}.py")
    assert parser.examples and "\n\nexamples:\n" in parser.format_help()
    for example in parser.examples:
        first, second, *words = shlex.split(example)
        assert (first, second) == called
        parser_of(name).parse_args(words)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_every_flag_once_in_a_group(name):
    parser = parser_of(name)
    shown = [(group, action.dest) for group, actions in grouped(parser._actions) for action in actions]
    assert sorted(dest for _, dest in shown) == sorted(action.dest for action in parser._actions)
    assert ("other", "help") in shown


def test_flags_are_grouped_by_what_they_are_for():
    groups = {
        group: [action.dest for action in actions] for group, actions in grouped(parser_of("perplexity")._actions)
    }
    assert list(groups) == ["inputs", "outputs", "settings", "text", "machine", "other"]
    assert groups["inputs"][0] == "model" and groups["outputs"] == ["output"]
    assert groups["text"] == ["length", "sequences", "bos"] and groups["machine"] == ["device", "dtype", "threads"]


def test_the_documents_spellings_are_accepted():
    given = parser_of("mixed_precision_ptq").parse_args(["--model_id", "m", "--ga_pop", "7", "--smooth_alpha=0.3"])
    assert (str(given.model), given.ga_pop, given.smooth_alpha) == ("m", 7, [0.3])


def test_no_flags_are_no_flags_of_the_process(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--no-such-flag"])
    assert parser_of("write_config").parse_args([]).fix is False
