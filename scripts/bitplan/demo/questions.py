"""Questions that a story answers earlier on: where a lost thing lies, which food was promised."""

import random
import re
from collections.abc import Iterator

from bitplan.demo.lexicon import WORDS
from bitplan.demo.stories import stories

CHOICES = 4
# (the sentence with the word to predict, its category, the earlier sentence that contains it)
KINDS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"At last \w+ found the \w+ \w+ in the (?P<word>\w+)\."),
        "place",
        r"(rolled into|took it to) the {}\b",
    ),
    (re.compile(r"Back at the \w+ they shared the (?P<word>\w+) and"), "food", r"I will bring you {},"),
)


def _questions_of(story: str, rng: random.Random) -> Iterator[dict[str, object]]:
    """Yield the story's questions: context, choices and the index of the right one."""
    for sentence, category, source in KINDS:
        match = sentence.search(story)
        if match is None or not re.search(source.format(match["word"]), story[: match.start()]):
            continue
        others = rng.sample([word for word in WORDS[category] if word != match["word"]], CHOICES - 1)
        choices = rng.sample([match["word"], *others], CHOICES)
        context = story[: match.start("word")].rstrip()
        yield {"context": context, "choices": choices, "answer": choices.index(match["word"])}


def questions(seed: int, count: int) -> list[dict[str, object]]:
    """Return `count` questions on stories of the seed; the same seed gives the same questions."""
    rng, results = random.Random(seed), []
    for story in stories(seed):
        results += _questions_of(story, rng)
        if len(results) >= count:
            return results[:count]
    raise AssertionError("the stream of stories has no end")
