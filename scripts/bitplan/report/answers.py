"""What the files of plans answer to the prompts of the speed test, beside what the reference file answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

from bitplan.core.files import read_json
from bitplan.report.results import Entry


@dataclass(frozen=True)
class Word:
    """A word of an answer, and whether the reference's answer has another there."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt beside the reference's."""

    prompt: str
    reference: str
    words: tuple[Word, ...]


def compared(reference: str, answer: str) -> tuple[Word, ...]:
    """Return the words of `answer`; those that are not in `reference` at their place differ."""
    theirs, ours = reference.split(), answer.split()
    same = set()
    for block in SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks():
        same.update(range(block.b, block.b + block.size))
    return tuple(Word(text, place not in same) for place, text in enumerate(ours))


def answers_of(entries: Iterable[Entry]) -> dict[str, tuple[Answer, ...]]:
    """Return {name: an answer for each prompt} from the speed.json of plans and recipes; the reference's own are left out."""
    found = {}
    for entry in entries:
        speed = read_json(entry.files()["speed"])
        models, reference = speed["models"], speed.get("reference")
        prompts = speed.get("settings", {}).get("prompts", ())
        if reference in models and entry.name != reference:
            pairs = zip(
                prompts, models[reference].get("answers", ()), models[entry.name].get("answers", ()), strict=False
            )
            found[entry.name] = tuple(Answer(prompt, theirs, compared(theirs, ours)) for prompt, theirs, ours in pairs)
    return {name: answers for name, answers in found.items() if answers}
