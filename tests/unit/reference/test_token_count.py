"""How many tokens a text has, counted without torch, and how many it can have at most."""

import unicodedata

import pytest

from bitplan.core.errors import UserError
from bitplan.reference.text import load_tokenizer, read_text
from bitplan.reference.token_count import count_tokens, most_tokens
from tests.tokenizer_kinds import KINDS, PROMPTS

WORDS = "\n".join(PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_count_is_that_of_the_windows_and_within_the_bound(kind, tmp_path):
    KINDS[kind](tmp_path, bos=True)
    text = tmp_path / "text.txt"
    text.write_text(WORDS, "utf-8")
    own = len(load_tokenizer(tmp_path)(read_text(text), add_special_tokens=False).input_ids)
    assert own <= most_tokens(text)
    for needed in (1, own - 1, own, own + 1, 10 * own):
        found = count_tokens(tmp_path, text, needed)
        assert found == own or own > found >= needed


def test_only_the_beginning_of_a_long_text_is_counted(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a boy. " * 20_000, "utf-8")
    assert 100 <= count_tokens(tiny, text, 100) < 1_000


def test_a_tokenizer_that_decomposes_makes_no_more_tokens_than_the_bound(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\ufdfa한국어", "utf-8")
    assert most_tokens(text) > len(unicodedata.normalize("NFKD", "\ufdfa한국어").encode()) > text.stat().st_size


def test_a_model_without_a_tokenizer_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(UserError, match="MODEL-NO-TOKENIZER"):
        count_tokens(tmp_path, tmp_path / "text.txt", 1)
