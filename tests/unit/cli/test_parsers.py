"""Every command's parser can be built by importing the command: nothing runs, and nothing heavy is imported."""

import argparse
import importlib

import pytest

from tests.conftest import SCRIPTS

COMMANDS = sorted(path.stem for path in SCRIPTS.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command."""
    return importlib.import_module(name).build_parser()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_imported_for_its_parser(name):
    assert isinstance(parser_of(name), argparse.ArgumentParser)
