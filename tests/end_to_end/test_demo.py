"""The bundled model: it is what its README says, and its formats separate."""

from itertools import pairwise

import pytest
from make_demo import SEEDS

from bitplan.demo.stories import text_of
from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import uniform_plan
from bitplan.reference.reference import make_reference

FORMATS = ("q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k")


@pytest.fixture(scope="module")
def kl(demo) -> dict[str, float]:
    """Mean KL on the evaluation text with every layer in one format."""
    checkpoint = Checkpoint.open(demo / "model")
    info, model = describe(checkpoint), open_model(checkpoint)
    reference = make_reference(model, demo / "evaluation.txt", 512, 8, "fp32")
    plans = {name: uniform_plan(info, name) for name in FORMATS}
    return {
        name: summarize(score_plan(model, info, plan, reference, QuantizedWeights(limit=0)))["kl_mean"]
        for name, plan in plans.items()
    }


def test_each_format_does_at_least_half_as_much_damage_again_as_the_one_before(kl):
    values = [kl[name] for name in FORMATS]
    assert all(harder >= 1.5 * gentler for gentler, harder in pairwise(values)), kl


def test_four_bits_do_a_damage_that_can_be_seen_and_lived_with(kl):
    assert 0.002 <= kl["q4_k"] <= 0.1


def test_the_model_is_a_small_grouped_query_llama_in_bfloat16(demo):
    checkpoint = Checkpoint.open(demo / "model")
    config = checkpoint.config
    assert (config["model_type"], config["hidden_size"], config["intermediate_size"]) == ("llama", 256, 768)
    assert 4 <= config["num_hidden_layers"] <= 6 and config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] and 1000 <= config["vocab_size"] <= 2000
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert sum(path.stat().st_size for path in (demo / "model").iterdir()) <= 12e6


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_the_texts_are_what_the_generator_makes_from_the_seed(demo, name):
    assert (demo / f"{name}.txt").read_text() == text_of(SEEDS[name] + 7, 250_000)


def test_no_story_is_in_two_texts(demo):
    calibration, evaluation = (
        set((demo / f"{name}.txt").read_text().splitlines()) for name in ("calibration", "evaluation")
    )
    training = set(text_of(SEEDS["training"] + 7, 3_000_000).splitlines())
    assert not calibration & evaluation and not (calibration | evaluation) & training
