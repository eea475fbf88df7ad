"""What the files of plans answer to the prompts of the speed test, beside what the reference file answers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile
from typing import Any

from bitplan.core.files import read_json
from bitplan.report.results import Entry

# A word with the space before it. Scripts without spaces (kana, Han, Hangul) are compared by character.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"(\s*)([{_UNSPACED}]|[^\s{_UNSPACED}]+)")


@dataclass(frozen=True)
class Word:
    """A word of a text, the space before it, and whether it is the prompt's or differs from the reference's text there."""

    space: str
    text: str
    given: bool = False
    differs: bool = False


@dataclass(frozen=True)
class Answer:
    """A prompt with its answer beside the same prompt with the reference's, and how many words of the answers are the same before
    the first that differs; None where none does."""

    prompt: str
    reference: tuple[Word, ...]
    words: tuple[Word, ...]
    same: int | None


def compared(prompt: str, reference: str, answer: str) -> Answer:
    """Return the answer beside the reference's; words that a word diff adds to the reference's text or changes differ.

    Prompt and answer are split into words as one text: a tokenizer may end a prompt inside a word, which the answer then completes.
    """
    theirs, ours = (_words(prompt, text) for text in (reference, answer))
    their_text, our_text = ([word.text for word in words] for words in (theirs, ours))
    same: set[int] = set()
    for block in SequenceMatcher(None, their_text, our_text, autojunk=False).get_matching_blocks():
        same.update(range(block.b, block.b + block.size))
    marked = tuple(Word(word.space, word.text, word.given, place not in same) for place, word in enumerate(ours))
    return Answer(prompt, theirs, marked, None if their_text == our_text else _alike(theirs, ours))


def _words(prompt: str, answer: str) -> tuple[Word, ...]:
    found = WORD.finditer(prompt + answer)
    return tuple(Word(each[1], each[2], given=each.end() <= len(prompt)) for each in found)


def _alike(theirs: Sequence[Word], ours: Sequence[Word]) -> int:
    """Return how many words of two answers are the same before the first that differs."""
    pairs = takewhile(lambda pair: pair[0].text == pair[1].text, zip(theirs, ours, strict=False))
    return sum(not word.given for word, _ in pairs)


def answers_of(entries: Iterable[Entry]) -> dict[str, tuple[Answer, ...]]:
    """Return {name: an answer for each prompt} from the speed.json of plans and recipes; the reference's own are left out."""
    found = {entry.name: _answers(entry.name, read_json(entry.files()["speed"])) for entry in entries}
    return {name: answers for name, answers in found.items() if answers}


def _answers(name: str, speed: Mapping[str, Any]) -> tuple[Answer, ...]:
    models, reference = speed["models"], speed.get("reference")
    if reference not in models or name == reference:
        return ()
    prompts = speed.get("settings", {}).get("prompts", ())
    theirs, ours = (models[each].get("answers", ()) for each in (reference, name))
    return tuple(compared(*each) for each in zip(prompts, theirs, ours, strict=False))
