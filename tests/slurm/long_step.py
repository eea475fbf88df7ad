"""A step that is hit in the middle: the evaluation of a text."""

from pathlib import Path

from tests.slurm.runs import make_folder

SETTINGS = {
    "models": {
        "demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    },
    "plans": {"drawn": {"method": "random", "mxfp4_ratio": 0.5, "bf16_ratio": 0.1, "seed": 1}},
    "evaluation": {"length": 512, "sequences": 48},
}
TARGET = "results/demo/evaluation.safetensors"
SCORES = "results/demo/plans/drawn/perplexity.json"
RULE = "evaluation"
LOG = f"logs/demo/{RULE}.log"


def long_folder(folder: Path) -> Path:
    """Return a folder in which nothing is made yet."""
    return make_folder(folder, SETTINGS)
