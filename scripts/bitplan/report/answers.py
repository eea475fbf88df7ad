"""What the files of plans answer to the prompts of the speed test, beside what the reference file answers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

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
    """Return the answer beside the reference's; words that the shortest edit of the reference's text adds differ.

    Prompt and answer are split into words as one text: a tokenizer may end a prompt inside a word, which the answer then completes.
    """
    theirs, ours = (_words(prompt, text) for text in (reference, answer))
    their_text, our_text = ([word.text for word in words] for words in (theirs, ours))
    same = _in_common(their_text, our_text)
    marked = tuple(Word(word.space, word.text, word.given, place not in same) for place, word in enumerate(ours))
    return Answer(prompt, theirs, marked, None if their_text == our_text else _alike(theirs, ours))


def _words(prompt: str, answer: str) -> tuple[Word, ...]:
    found = WORD.finditer(prompt + answer)
    return tuple(Word(each[1], each[2], given=each.end() <= len(prompt)) for each in found)


def _in_common(theirs: Sequence[str], ours: Sequence[str]) -> set[int]:
    """Return the places in `ours` of a longest common subsequence: difflib's longest block first marks up to a quarter more words."""
    equal = np.array(theirs, dtype=object)[:, None] == np.array(ours, dtype=object)[None, :]
    length = np.zeros((len(theirs) + 1, len(ours) + 1), dtype=np.int32)  # of that of the words from (row, column) on
    for row in range(len(theirs) - 1, -1, -1):
        best = np.where(equal[row], length[row + 1, 1:] + 1, length[row + 1, :-1])
        length[row, :-1] = np.maximum.accumulate(best[::-1])[::-1]
    row, column, places = 0, 0, set()
    while row < len(theirs) and column < len(ours):
        if equal[row, column]:
            places.add(column)
            row, column = row + 1, column + 1
        elif length[row + 1, column] >= length[row, column + 1]:
            row += 1
        else:
            column += 1
    return places


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
