"""Run the tests of the adaptive search."""

from bitplan.cli.parser import parser, run


def main(args) -> None:
    from bitplan.cli.testing import run_tests

    run_tests("tests/unit/search/test_adaptive.py", "tests/unit/statistics/test_alpha_hill.py")


if __name__ == "__main__":
    run(parser(__doc__), main)
