"""Run the tests of SparseGPT with a width per channel.

For example:

    python scripts/test_enhanced.py
"""

from argparse import ArgumentParser

from bitplan.cli.parser import parser, run


def main(args) -> None:
    """Run the tests; the exit code is theirs."""
    from bitplan.cli.testing import run_tests

    run_tests("tests/unit/search/test_sparsegpt.py")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    return parser(__doc__)


if __name__ == "__main__":
    run(build_parser(), main)
