"""`sparsegpt_enhanced.py` under the name of the original's command for OPT; any supported family will do.

For example:

    python scripts/opt_enhanced.py demo/model demo/calibration.txt --seqlen 512 --nsamples 16 --sparsity 0.5 --save compressed
"""

from sparsegpt_enhanced import build_parser, main

from bitplan.cli.parser import run

if __name__ == "__main__":
    run(build_parser(), main)
