"""`sparsegpt_enhanced.py` under the name of the original's command for OPT; any supported family will do."""

from sparsegpt_enhanced import build_parser, main

from bitplan.cli.parser import run

if __name__ == "__main__":
    run(build_parser(), main)
