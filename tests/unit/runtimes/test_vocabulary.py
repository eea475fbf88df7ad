"""GGUF vocabularies: llama.cpp makes of a text the tokens that the original tokenizer makes, and what a file cannot hold is named."""

import json
import logging

import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer

from bitplan.models.checkpoint import Checkpoint
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.llama_runtime import vocabulary
from bitplan.runtimes.gguf.vocabulary import PROBES, ends_of, pre_tokenizer_of, probed
from tests.tokenizer_kinds import CONTRACTIONS, KINDS, PROMPTS, byte_level, model_with, sentencepiece

# A SentencePiece text gets a space in front of it from llama.cpp also where one stands there, and after each special token.
AFTER_A_SPACE = {" a leading space", "   three leading spaces", "<s>text</s> with <s> special tokens"}


def converted(folder, write_tokenizer, **settings):
    model_with(folder, write_tokenizer, **settings)
    convert(Checkpoint.open(folder), folder / "base.gguf")
    return folder / "base.gguf"


def fields(path):
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_and_transformers_make_the_same_tokens(kind, bos, eos, tmp_path, caplog):
    path = converted(tmp_path / "model", lambda folder: KINDS[kind](folder, bos, eos))
    original = AutoTokenizer.from_pretrained(path.parent)
    prompts = [text for text in PROMPTS if kind != "sentencepiece" or text not in AFTER_A_SPACE]
    assert len(prompts) >= 19
    with vocabulary(path) as tokenize:
        assert {text: tokenize(text) for text in prompts} == {text: original(text).input_ids for text in prompts}
    held = fields(path)
    assert (held["tokenizer.ggml.add_bos_token"], held["tokenizer.ggml.add_eos_token"]) == (bos, eos)
    assert caplog.text == ""


def test_a_sentencepiece_vocabulary_without_a_space_in_front_makes_the_same_tokens_of_every_prompt(tmp_path):
    path = converted(tmp_path / "model", lambda folder: sentencepiece(folder, bos=True, add_prefix_space=False))
    original = AutoTokenizer.from_pretrained(path.parent)
    assert fields(path)["tokenizer.ggml.add_space_prefix"] is False
    with vocabulary(path) as tokenize:
        assert [tokenize(text) for text in PROMPTS] == [original(text).input_ids for text in PROMPTS]


def test_the_prompts_tell_the_pre_tokenizers_apart(tmp_path):
    made = {}
    for kind in ("gpt2", "llama3", "qwen2"):
        KINDS[kind](tmp_path / kind, False)
        made[kind] = AutoTokenizer.from_pretrained(tmp_path / kind)
    assert {kind: pre_tokenizer_of(one) for kind, one in made.items()} == {
        "gpt2": "gpt-2",
        "llama3": "llama-bpe",
        "qwen2": "qwen2",
    }
    split = {kind: [len(one(text).input_ids) for text in PROMPTS] for kind, one in made.items()}
    assert len({tuple(counts) for counts in split.values()}) == 3


def test_an_unknown_pre_tokenizer_is_named_and_what_it_changes_is_shown(tmp_path, caplog):
    own = CONTRACTIONS + r"|\p{L}+|\p{N}+|[^\p{L}\p{N}]"
    converted(tmp_path / "model", lambda folder: byte_level(folder, own, bos=False))
    assert "unknown pre-tokenizer, taken as llama-bpe" in caplog.text
    assert "probe texts otherwise than the original tokenizer, for example" in caplog.text


def with_added(bos: bool, kind: str = "sentencepiece", count: int = 3):
    def write(folder):
        KINDS[kind](folder, bos)
        made = AutoTokenizer.from_pretrained(folder)
        made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        made.add_tokens([f"added{i}" for i in range(count)])
        kept = (folder / "tokenizer.model").read_bytes() if kind == "sentencepiece" else None
        made.save_pretrained(folder)
        if kept:
            (folder / "tokenizer.model").write_bytes(kept)

    return write


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2"])
def test_added_tokens_are_in_the_file(kind, tmp_path, caplog):
    path = converted(tmp_path / "model", with_added(False, kind))
    original = AutoTokenizer.from_pretrained(path.parent)
    texts = ["Karl<|im_end|>", "a word added1", "<|im_start|>"]
    with vocabulary(path) as tokenize:
        assert [tokenize(text) for text in texts] == [original(text).input_ids for text in texts]
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2"])
def test_tokens_behind_the_embedding_are_named_and_the_rest_works(kind, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    path = converted(tmp_path / "model", with_added(True, kind), vocabulary=600)
    original = AutoTokenizer.from_pretrained(path.parent)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and f"has {len(original)} tokens, the embedding 600 rows" in said[0]
    assert "'<|im_start|>', '<|im_end|>', 'added0'" in said[0]
    assert len(fields(path)["tokenizer.ggml.tokens"]) == 600
    with vocabulary(path) as tokenize:
        assert tokenize("Once upon a time") == original("Once upon a time").input_ids


def test_what_the_converter_warns_of_is_passed_on(tmp_path, caplog):
    rope = {"rope_theta": 10000.0, "rope_type": "proportional", "factor": 2.0}
    converted(tmp_path / "model", lambda folder: KINDS["gpt2"](folder, False))
    assert caplog.text == ""
    settings = tmp_path / "model" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "rope_parameters": rope}))
    convert(Checkpoint.open(tmp_path / "model"), tmp_path / "base.gguf")
    assert "llama.cpp's converter: Unknown RoPE type: proportional" in caplog.text


def test_the_ends_of_a_text_are_asked_of_the_tokenizer(tmp_path):
    KINDS["qwen2"](tmp_path, True, True)
    made = AutoTokenizer.from_pretrained(tmp_path)
    assert ends_of(made) == ([made.bos_token_id], [made.eos_token_id])


def test_a_probe_that_cannot_run_is_an_error_and_no_difference(tmp_path, demo):
    with pytest.raises(RuntimeError, match="probe of tokens failed"):
        probed(tmp_path / "absent.gguf", AutoTokenizer.from_pretrained(demo / "model"))


def test_a_vocabulary_without_bytes_is_told_with_the_characters_that_end_llama_cpp(tmp_path, caplog):
    converted(tmp_path / "model", lambda folder: sentencepiece(folder, bos=True, single_bytes=False))
    said = next(record.getMessage() for record in caplog.records if "ends the process" in record.getMessage())
    assert f"of {len(PROBES)} probe texts" in said and "'\\t', '\\n'" in said and "ends llama-server" in said
