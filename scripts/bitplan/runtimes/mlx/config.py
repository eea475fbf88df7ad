"""What `config.json` says of packed layers, and what mlx-lm reads at another place than transformers writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.runtimes.mlx.names import module_name
from bitplan.runtimes.mlx.schemes import AFFINE, Scheme
from bitplan.runtimes.runtime import ExportJob

# Of a matrix that has no entry; every matrix has one.
DEFAULT = {"group_size": 64, "bits": 4, "mode": AFFINE}
# Keys that mlx-lm needs, by those under which transformers 5 writes them.
ALIASES = {
    "num_experts": "num_local_experts",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}


def mlx_config(job: ExportJob, schemes: Mapping[str, Scheme], matrices: Sequence[str]) -> dict[str, Any]:
    """Return the keys that mlx-lm needs: an entry for every matrix, false for one that stays at 16 bits."""
    family, config = job.info.model_type, job.checkpoint.config
    entries = {module_name(name, family): schemes[name].entry if name in schemes else False for name in matrices}
    table = {**DEFAULT, **entries}
    tied = {"tie_word_embeddings": job.checkpoint.tied}
    made = {"quantization": table, "quantization_config": table, **tied, **rope_settings(config)}
    return made | _aliases({**config, **made})


def _aliases(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model under the names that mlx-lm has for them, where these are missing."""
    return {own: config[theirs] for own, theirs in ALIASES.items() if own not in config and theirs in config}


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of rotary positions as keys of their own, as transformers wrote them before version 5.

    mlx-lm 0.32 looks there for most families, and computes with a default where it finds none.
    """
    nested = config.get("rope_parameters") or {}
    if "full_attention" in nested:
        local = nested.get("sliding_attention", {})
        return _flat(nested["full_attention"]) | ({"rope_local_base_freq": local["rope_theta"]} if local else {})
    return {key: value for key, value in _flat(nested).items() if key not in config}


def _flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base of one kind of rotary positions and, where they are scaled, the scaling."""
    theta = {"rope_theta": nested["rope_theta"]} if "rope_theta" in nested else {}
    partial = {"partial_rotary_factor": nested["partial_rotary_factor"]} if "partial_rotary_factor" in nested else {}
    scaled = nested.get("rope_type", "default") != "default"
    return theta | partial | ({"rope_scaling": dict(nested)} if scaled else {})
