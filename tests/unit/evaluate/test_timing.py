"""What a timed run is given: its prompts as tokens."""

import re

import pytest

from bitplan.evaluate.timing import PROMPTS, tokens_of_prompt

PROMPT = "there was a"


def tokenizer(pattern: str):
    """A tokenizer whose vocabulary holds what it has met; a token is what the pattern matches."""
    known: list[str] = []

    def tokenize(text: str) -> list[int]:
        pieces = re.findall(pattern, text)
        known.extend(piece for piece in pieces if piece not in known)
        return [known.index(piece) for piece in pieces]

    return tokenize, known


def test_the_space_after_a_prompt_belongs_to_its_last_token_where_words_carry_it_behind_them():
    tokenize, known = tokenizer(r"\w+ ?| ")
    prompt = tokens_of_prompt(PROMPT, tokenize)
    assert [known[token] for token in prompt.tokens] == ["there ", "was ", "a "] and prompt.space == " "


@pytest.mark.parametrize("pattern", [r" ?\w+| ", r"\w+"], ids=["space before words", "no spaces"])
def test_a_prompt_stays_as_it_is_in_any_other_vocabulary(pattern):
    tokenize, known = tokenizer(pattern)
    prompt = tokens_of_prompt(PROMPT, tokenize)
    assert "".join(known[token] for token in prompt.tokens) in (PROMPT, "therewasa") and prompt.space == ""
    assert len(prompt.tokens) == 3


def test_a_real_vocabulary_with_spaces_behind_its_words_begins_no_answer_inside_a_word(assets):
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(assets / "tinystories-656k")
    given = [tokens_of_prompt(prompt, lambda text: own(text).input_ids) for prompt in PROMPTS]
    assert [own.convert_ids_to_tokens(prompt.tokens)[-1][-1] for prompt in given] == ["\u2581"] * len(PROMPTS)
