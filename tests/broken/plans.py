"""Plans that no command takes, and a few that it does."""

from functools import partial
from pathlib import Path

from tests.broken.making import Shelf, written

PLANS: dict[str, object] = {
    "plan": {"default": {"wq": "mxfp4"}},
    "plan_of_another": {"default": {"wq": "mxfp4"}, "model_fingerprint": "0" * 64},
    "plan_of_q4_k": {"default": {"wq": "q4_k"}},
    "plan_of_no_format": {"default": {"wq": "mxfp44"}},
    "plan_of_a_listed_format": {"default": {"wq": ["mxfp4"]}},
    "plan_of_weight_activations": {"overrides": [{"pattern": "*", "wq": "mxfp4", "aq": "q8_0"}]},
    "plan_of_all_outside": {"overrides": [{"pattern": "*", "wq": "q8_0", "embeddings": True}]},
    "plan_of_no_format_outside": {"overrides": [{"pattern": "lm_head", "wq": "q6_kk", "embeddings": True}]},
    "plan_of_activations_outside": {
        "overrides": [{"pattern": "lm_head", "wq": "q8_0", "aq": "mxfp8", "embeddings": True}]
    },
    "plan_of_q4_k_outside": {"overrides": [{"pattern": "model.embed_tokens", "wq": "q4_k", "embeddings": True}]},
    "plan_of_no_layer": {"overrides": [{"pattern": "model.layers.7.*", "wq": "mxfp4"}]},
    "plan_misspelt": {"overides": [{"pattern": "*", "wq": "mxfp4"}]},
    "plan_key_misspelt": {"overrides": [{"pattern": "*", "wqq": "mxfp4"}]},
    "plan_of_one_object": {"overrides": {"pattern": "*", "wq": "mxfp4"}},
    "plan_without_pattern": {"overrides": [{"wq": "mxfp4"}]},
    "plan_of_a_numbered_pattern": {"overrides": [{"pattern": 7, "wq": "mxfp4"}]},
    "plan_of_a_listed_default": {"default": ["mxfp4"]},
    "plan_of_a_worded_summary": {"search_summary": "good"},
    "plan_of_a_worded_target": {"search_summary": {"target_avg_bits": "eight"}},
    "plan_of_a_worded_skip": {"overrides": [{"pattern": "*q_proj", "skip": "no"}]},
    **{
        f"plan_group_{name}": {"default": {"wq": "mxfp4", "group_size": value}}
        for name, value in {"zero": 0, "negative": -1, "true": True, "text": "32", "half": 1.5}.items()
    },
}


def _plan(shelf: Shelf, target: Path, content: object) -> Path:
    """A plan as a file; its name ends as a plan's does."""
    written(target.with_suffix(".json"), content)
    return target.with_suffix(".json")


BY_NAME = {name: partial(_plan, content=content) for name, content in PLANS.items()}
