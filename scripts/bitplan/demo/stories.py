"""Short stories from a small world model, so that later sentences depend on earlier ones.

A story has a state: who holds which thing, where everybody is, what was promised and what was lost.
Each event reads this state, changes it and describes it. The names, things and places of later
sentences can therefore only be predicted from earlier ones, which makes attention useful.
Scenes between the events use words that go together (`lexicon`).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from bitplan.demo.lexicon import WORDS, fitting, with_article


@dataclass(frozen=True)
class Person:
    """A character: its name, the pronouns that refer to it and what it is."""

    name: str
    he: str
    him: str
    his: str
    kind: str


@dataclass
class World:
    """The state at a point of a story; events read and change it."""

    rng: random.Random
    hero: Person
    friend: Person
    thing: str
    quality: str
    home: str
    place: str
    holder: Person | None = None
    hidden_in: str | None = None
    promised: str | None = None

    def pick(self, *sentences: str) -> str:
        """Return one of the sentences."""
        return self.rng.choice(sentences)

    def fit(self, category: str, context: str) -> str:
        """Return a word of a category that goes with the context word."""
        return fitting(self.rng, category, context)

    def someone(self) -> Person:
        """Return hero or friend."""
        return self.rng.choice((self.hero, self.friend))

    def other(self) -> Person:
        """Return whichever of hero and friend does not hold the thing."""
        return self.friend if self.holder == self.hero else self.hero


def _person(rng: random.Random, taken: str = "") -> Person:
    female = rng.random() < 0.5
    name = rng.choice([name for name in WORDS["girl" if female else "boy"] if name != taken])
    he, him, his = ("she", "her", "her") if female else ("he", "him", "his")
    animal = rng.random() < 0.4
    return Person(name, he, him, his, fitting(rng, "animal", name) if animal else "girl" if female else "boy")


def _world(rng: random.Random) -> World:
    hero = _person(rng)
    friend = _person(rng, hero.name)
    thing = fitting(rng, "thing", hero.name)
    home, place = rng.sample(WORDS["place"], 2)
    return World(rng, hero, friend, thing, fitting(rng, "quality", thing), home, place)


def _opening(w: World) -> str:
    h, f, mood = w.hero, w.friend, w.fit("mood", w.hero.name)
    w.holder = h
    return w.pick(
        f"Once upon a time there was {with_article(mood)} {h.kind} named {h.name}, and {h.he} lived by the {w.home}.",
        f"Near the {w.home} lived {h.name} the {h.kind}, who was always {mood}.",
    ) + w.pick(
        f" {h.his.capitalize()} best friend was {f.name}, {with_article(f.kind)} who liked {w.fit('food', f.name)}.",
        f" {h.name} knew {with_article(f.kind)} called {f.name}, and {h.he} owned {with_article(w.quality)} {w.thing}.",
        f" One thing {h.name} loved most of all: {with_article(w.quality)} {w.thing}. {f.name} the {f.kind} wanted it too.",
    )


def _walk(w: World) -> str:
    w.place = w.fit("place", w.place)
    time, weather = w.fit("time", w.place), w.fit("weather", w.place)
    names = f"{w.hero.name} and {w.friend.name}" if w.rng.random() < 0.6 else w.someone().name
    return w.pick(
        f"One {weather} {time} {names} went to the {w.place}.",
        f"On {with_article(weather)} {time} {names} walked from the {w.home} to the {w.place}.",
    )


def _lend(w: World) -> str:
    giver, taker = w.holder, w.other()
    w.holder = taker
    return w.pick(
        f'"May I hold your {w.thing}?" asked {taker.name}. {giver.name} gave {taker.him} the {w.quality} {w.thing}.',
        f"{giver.name} handed the {w.quality} {w.thing} to {taker.name}, and {taker.he} held it {w.fit('adverb', w.thing)}.",
    )


def _lose(w: World) -> str:
    loser, w.holder = w.holder, None
    w.hidden_in = w.fit("place", w.thing)
    return w.pick(
        f"At the {w.place} {loser.name} slipped, and the {w.thing} rolled into the {w.hidden_in}.",
        f"Then {with_article(w.fit('animal', w.thing))} stole the {w.thing} from {loser.name} and took it to the {w.hidden_in}.",
    ) + w.pick(
        f" {loser.name} was {w.fit('mood', loser.name)}.",
        f' "I lost it," said {loser.name} {w.fit("adverb", loser.name)}.',
    )


def _find(w: World) -> str:
    finder, where = w.someone(), w.hidden_in
    w.hidden_in, w.holder, w.place = None, finder, where
    return w.pick(
        f"At last {finder.name} found the {w.quality} {w.thing} in the {where}.",
        f"They asked {with_article(w.fit('animal', where))}, who pointed at the {where}. There {finder.name} saw the {w.thing}.",
    )


def _promise(w: World) -> str:
    a, b = w.rng.sample((w.hero, w.friend), 2)
    w.promised = w.fit("food", a.name)
    return f'"If you help me, I will bring you {w.promised}," {a.name} told {b.name}.'


def _feast(w: World) -> str:
    food, w.promised = w.promised, None
    return f"Back at the {w.home} they shared the {food} and some {w.fit('food', food)}, as promised."


def _use(w: World) -> str:
    who = w.holder
    return w.pick(
        f"{who.name} {w.fit('verb', w.thing)} the {w.quality} {w.thing} {w.fit('adverb', w.thing)}.",
        f"{who.name} showed the {w.thing} to {with_article(w.fit('animal', w.place))} at the {w.place}.",
    )


def _scene(w: World) -> str:
    thing, animal = w.fit("thing", w.place), w.fit("animal", w.place)
    quality, verb = w.fit("quality", thing), w.fit("verb", animal)
    object_ = w.fit("thing", verb)
    return w.pick(
        f"Beside the {w.place} stood {with_article(quality)} {thing}.",
        f"There {with_article(w.fit('quality', animal))} {animal} {verb} the {object_} {w.fit('adverb', verb)}.",
        f"The {thing} was {quality}, but the {object_} was {w.fit('quality', object_)}.",
        f"{with_article(quality).capitalize()} {thing} lay under {with_article(w.fit('quality', object_))} {object_}.",
        f"The {animal} {verb} {with_article(w.fit('quality', object_))} {object_}.",
    )


def _deed(w: World) -> str:
    who = w.someone()
    verb = w.fit("verb", who.name)
    thing = w.fit("thing", verb)
    second = w.fit("verb", verb)
    return w.pick(
        f"{who.name} {verb} the {w.fit('quality', thing)} {thing}.",
        f"First {who.name} {verb} the {thing}, then {who.he} {second} the {w.fit('thing', second)}.",
        f"{who.name} had never seen such {with_article(w.fit('quality', thing))} {thing}.",
        f"{who.name} was {w.fit('mood', who.name)} and {verb} {with_article(w.fit('quality', thing))} {thing} {w.fit('adverb', verb)}.",
        f'"The {thing} is {w.fit("quality", thing)}," said {who.name}. "I {verb} it {w.fit("adverb", verb)}."',
        f"{who.name} ate {w.fit('food', who.name)} and {verb} the {thing}.",
    )


def _ending(w: World) -> str:
    if w.hidden_in:
        return f"They never found the {w.quality} {w.thing}, which still lies in the {w.hidden_in}."
    owner = w.holder or w.hero
    return w.pick(
        f"In the end {owner.name} kept the {w.quality} {w.thing}, and they lived {w.fit('adverb', w.home)} by the {w.home}.",
        f"From that day on {w.hero.name} the {w.hero.kind} and {w.friend.name} the {w.friend.kind} were never apart.",
    )


EVENTS: tuple[tuple[Callable[[World], str], Callable[[World], bool]], ...] = (
    *((_scene, lambda w: True),) * 3,
    *((_deed, lambda w: True),) * 4,
    (_walk, lambda w: True),
    (_lend, lambda w: w.holder is not None),
    (_use, lambda w: w.holder is not None),
    (_lose, lambda w: w.holder is not None),
    *((_find, lambda w: w.hidden_in is not None),) * 2,
    (_promise, lambda w: w.promised is None),
    (_feast, lambda w: w.promised is not None),
)


def story(rng: random.Random) -> str:
    """Return one story of about 80 to 200 words on one line."""
    world = _world(rng)
    sentences = [_opening(world)]
    for _ in range(rng.randint(6, 14)):
        event = rng.choice([event for event, allowed in EVENTS if allowed(world)])
        sentences.append(event(world))
    return " ".join((*sentences, _ending(world)))


def stories(seed: int) -> Iterator[str]:
    """Yield an endless stream of stories; the same seed gives the same stories."""
    rng = random.Random(seed)
    while True:
        yield story(rng)


def text_of(seed: int, characters: int) -> str:
    """Return complete stories, one per line, with just over `characters` characters in total."""
    sizes = [0]

    def short(line: str) -> bool:
        sizes[0] += len(line) + 1
        return sizes[0] - len(line) - 1 < characters

    return "\n".join(takewhile(short, stories(seed))) + "\n"
