"""Run the tests of the random method: classification of layers, draws, files, edge cases.

For example:

    python scripts/test_random_mixed_precision.py
"""

from argparse import ArgumentParser

from bitplan.cli.parser import parser, run


def main(args) -> None:
    """Run the tests; the exit code is theirs."""
    from bitplan.cli.testing import run_tests

    run_tests("tests/unit/search/test_random_mixed.py", "tests/unit/models/test_layers.py")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    return parser(__doc__)


if __name__ == "__main__":
    run(build_parser(), main)
