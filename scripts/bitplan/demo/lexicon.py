"""Words and their affinities: an adjective fits some nouns, a verb takes some objects, a name likes some foods.

The affinities are fixed random numbers seeded by the words. To predict the next word, a model has to learn thousands of such
pairs. They fill the weights of a small model, so that quantization has a visible effect.
"""

import math
import random
from functools import cache

GIRLS = "Ada Bela Clara Dora Edda Flora Greta Hanna Ines Juna Kaja Lotte Mira Nele Olga Petra Rosa Sina Tilda Uma Vera Wilma Yara Zoe"
BOYS = "Anton Boris Carlo Dario Emil Felix Gustav Hugo Ivan Jonas Karl Luca Milan Nils Oskar Paul Quentin Rufus Simon Theo Udo Viktor Willem Yann"
ANIMALS = "fox hare badger otter crow hedgehog mole goat duck owl squirrel donkey cat dog goose mouse bear wolf frog snail heron beetle pony lamb"
THINGS = (
    "kite lantern drum basket whistle compass ladder spoon mirror button map rope kettle marble shell feather coin key flute"
    " blanket hammer ribbon teapot wheel bell brush candle jar boat puppet needle bucket saddle violin crown glove scarf lamp"
    " bottle box chair clock cup door fence flag fork hat hook knife letter net oven paddle pencil pillow plate pot purse"
    " ring rug sack sail scale shovel sled stone stool sword table tent thread towel trumpet umbrella vase wagon watch window"
    " apron arrow barrel bench book boot bow broom cage cart chain chest cloak comb cork crate curtain dish doll engine fan"
)
PLACES = (
    "mill harbour orchard bridge market meadow attic cellar library bakery forest river garden barn tower lake workshop hill"
    " station field beach cave church desert farm gate island kitchen lighthouse mountain palace park pond road school shore"
    " stable street swamp temple theatre tunnel valley village well yard"
)
QUALITIES = (
    "old tiny heavy shiny broken soft crooked smooth dusty pretty strange wooden red blue green yellow white black silver golden"
    " brown purple grey orange ancient bitter blunt bright cheap clean clever clumsy cold cracked curly damp dark deep delicate"
    " dirty dry dull empty enormous faded famous fancy flat fragile fresh funny gentle giant graceful hard hollow hot huge humble"
    " icy jolly large lazy little long loose loud lovely magic messy mighty modern muddy narrow neat noisy odd painted pale plain"
    " pointed polished precious quick quiet rare rough round rusty sharp short silent simple sleepy slippery slow small sour"
    " spotted square sticky stiff striped strong sturdy sweet tall thick thin torn twisted ugly useful warm wet wide wild wise"
)
MOODS = "happy sad angry proud tired curious nervous calm worried cheerful lonely brave ashamed bored confused excited grateful hungry jealous hopeful"
FOODS = "bread soup plums honey cheese pancakes berries porridge apples cake nuts pears beans butter carrots cherries eggs figs fish grapes jam milk onions pie rice salad"
WEATHER = "sunny windy rainy foggy snowy cold warm stormy cloudy frosty mild misty"
TIMES = "morning afternoon evening day night noon"
VERBS = (
    "admired borrowed bought broke brought built buried carried caught chased chose cleaned copied counted covered cut"
    " decorated described discovered drew dropped examined fetched filled fixed followed forgot found freed gathered grabbed"
    " guarded hated held hid hit imagined kicked kissed knew lifted liked lost loved made mended missed moved needed noticed"
    " opened ordered painted patted picked polished praised pulled pushed raised recognized remembered repaired rolled sang"
    " saved scratched shook showed smelled sold stole studied swung threw touched tied traded turned used wanted washed watched"
)
ADVERBS = (
    "slowly quickly gently loudly quietly carefully suddenly often never always again twice together alone bravely calmly"
    " eagerly gladly happily kindly lazily neatly nervously politely proudly rarely sadly secretly softly soon still today wildly"
)

WORDS: dict[str, tuple[str, ...]] = {
    name: tuple(text.split())
    for name, text in {
        "girl": GIRLS,
        "boy": BOYS,
        "animal": ANIMALS,
        "thing": THINGS,
        "place": PLACES,
        "quality": QUALITIES,
        "mood": MOODS,
        "food": FOODS,
        "weather": WEATHER,
        "time": TIMES,
        "verb": VERBS,
        "adverb": ADVERBS,
    }.items()
}
SHARPNESS = 3.0


@cache
def affinities(category: str, context: str) -> tuple[float, ...]:
    """Return the weight of every word of a category after `context`: log-normal, drawn once for the pair."""
    rng = random.Random(f"{category} after {context}")
    return tuple(math.exp(rng.gauss(0.0, SHARPNESS)) for _ in WORDS[category])


def fitting(rng: random.Random, category: str, context: str) -> str:
    """Return a word of a category that fits the context word."""
    return rng.choices(WORDS[category], affinities(category, context))[0]


def with_article(word: str) -> str:
    """Return the word after "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
