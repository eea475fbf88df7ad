"""llama.cpp's low-level interface as used here."""

import pytest

from bitplan.models.checkpoint import Checkpoint
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.llama_runtime import opened


@pytest.fixture(scope="module")
def runtime(demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "base.gguf"
    convert(Checkpoint.open(demo / "model"), path)
    with opened(path, 128, 1) as made:
        yield made


def test_a_prompt_becomes_the_tokens_of_the_checkpoints_tokenizer_and_text_again(runtime, demo):
    from transformers import AutoTokenizer

    text = "Once upon a time there was a boy named Karl."
    tokens = runtime.tokenize(text)
    assert tokens == AutoTokenizer.from_pretrained(demo / "model")(text, add_special_tokens=False).input_ids
    assert runtime.text_of(tokens).strip() == text


def test_generating_is_greedy_and_repeats_itself(runtime):
    prompt = runtime.tokenize("Near the mill lived")
    assert runtime.generate(prompt, 20)[0] == runtime.generate(prompt, 20)[0]


def test_window_logits_do_not_depend_on_what_was_decoded_before(runtime):
    tokens = list(range(20, 60))
    first = runtime.window_logits(tokens)
    runtime.generate(tokens[:5], 10)
    assert (runtime.window_logits(tokens) == first).all()


def test_the_runtime_computes_with_the_threads_it_is_given(demo, tmp_path):
    path = tmp_path / "base.gguf"
    convert(Checkpoint.open(demo / "model"), path)
    with opened(path, 32, 3) as made:
        assert made.api.llama_n_threads(made.state) == made.api.llama_n_threads_batch(made.state) == 3
