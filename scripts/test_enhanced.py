"""Run the tests of SparseGPT with a width per channel."""

from bitplan.cli.parser import parser, run


def main(args) -> None:
    from bitplan.cli.testing import run_tests

    run_tests("tests/unit/search/test_sparsegpt.py")


if __name__ == "__main__":
    run(parser(__doc__), main)
