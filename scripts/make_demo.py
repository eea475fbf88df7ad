"""Train the bundled model from a seed: text, tokenizer, model.

For example:

    python scripts/make_demo.py --output demo --steps 100
"""

import json
from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.inputs import output_folder
from bitplan.cli.parser import parser, run
from bitplan.config.flag_types import count, number
from bitplan.demo.settings import TrainingSettings

# Texts and questions come from streams of their own, so that no story is in two of them on purpose.
SEEDS = {"training": 0, "calibration": 1_000_003, "evaluation": 2_000_003, "questions": 3_000_003}
QUESTIONS = 200


def main(args) -> None:
    """Write the texts, the tokenizer and the trained model. Raises `UserError`."""
    import torch

    from bitplan.demo.questions import questions
    from bitplan.demo.stories import text_of
    from bitplan.demo.training import train_model, train_tokenizer

    settings = TrainingSettings(seed=args.seed, steps=args.steps)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("calibration", "evaluation"):
        (args.output / f"{name}.txt").write_text(text_of(SEEDS[name] + args.seed, 250_000), encoding="utf-8")
    tasks = args.output / "tasks" / "questions.jsonl"
    tasks.parent.mkdir(exist_ok=True)
    asked = questions(SEEDS["questions"] + args.seed, QUESTIONS)
    tasks.write_text("".join(json.dumps(question) + "\n" for question in asked), encoding="utf-8")
    text = text_of(SEEDS["training"] + args.seed, settings.text_characters)
    tokenizer = train_tokenizer(text, settings.pieces, args.output / "model")
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    train_model(tokens, settings).save_pretrained(args.output / "model")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--output", type=output_folder, default=Path("demo"), help="folder for texts, tasks and model")
    flags.add_argument("--seed", type=number(0, kind=int), default=TrainingSettings.seed, help="seed of everything")
    flags.add_argument("--steps", type=count, default=TrainingSettings.steps, help="steps of the training")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
