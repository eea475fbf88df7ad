"""Questions that a story's own past answers: where a lost thing lies, which food was promised."""

import random
import re
from collections.abc import Iterator

from bitplan.demo.lexicon import WORDS
from bitplan.demo.stories import stories

CHOICES = 4
# (the sentence breaks off after this, what the right word is, where earlier in the story it stood)
KINDS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"At last \w+ found the \w+ \w+ in the (?P<word>\w+)\."),
        "place",
        r"(rolled into|took it to) the {}\b",
    ),
    (re.compile(r"Back at the \w+ they shared the (?P<word>\w+) and"), "food", r"I will bring you {},"),
)


def _asked(story: str, rng: random.Random) -> Iterator[dict[str, object]]:
    """Yield the story's questions: context, choices, number of the right one."""
    for sentence, category, source in KINDS:
        found = sentence.search(story)
        if found is None or not re.search(source.format(found["word"]), story[: found.start()]):
            continue
        others = rng.sample([word for word in WORDS[category] if word != found["word"]], CHOICES - 1)
        choices = rng.sample([found["word"], *others], CHOICES)
        context = story[: found.start("word")].rstrip()
        yield {"context": context, "choices": choices, "answer": choices.index(found["word"])}


def questions(seed: int, count: int) -> list[dict[str, object]]:
    """Return `count` questions on stories of the stream `seed`; the same seed gives the same questions."""
    rng, made = random.Random(seed), []
    for story in stories(seed):
        made += _asked(story, rng)
        if len(made) >= count:
            return made[:count]
    raise AssertionError("the stream of stories has no end")
