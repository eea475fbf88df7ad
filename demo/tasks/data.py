"""The documents of the bundled tasks, which lm-eval asks for by these names: all of them lie beside this file."""

import json
from pathlib import Path

from datasets import Dataset

HERE = Path(__file__).resolve().parent


def stories(**metadata: object) -> dict[str, Dataset]:
    """Return the stories of the evaluation text, one document each."""
    lines = (HERE.parent / "evaluation.txt").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([{"page": line} for line in lines if line])}


def questions(**metadata: object) -> dict[str, Dataset]:
    """Return the questions: a story that breaks off, four continuations, the number of the right one."""
    lines = (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
