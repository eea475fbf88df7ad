"""Checkpoints of kinds that people have, made of a small one, and what a model answers with them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitplan.models.checkpoint import Checkpoint
from bitplan.models.walk import open_model
from bitplan.reference.head import StoredHead
from tests.families import GROUPED

TOKENS = torch.arange(3, 67).view(2, 32)
Q = "model.layers.0.self_attn.q_proj"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
SMALL = {**GROUPED, "vocab_size": 2048, "tie_word_embeddings": False}
LATENT = {
    **{"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    **{"n_group": 1, "topk_group": 1, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16},
    **{"qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4},
}


def change(folder: Path, what: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: object) -> Path:
    """Replace the tensors of a checkpoint by what a function makes of them, and some settings of its config.json."""
    made = what(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def add(folder: Path, **tensors: Tensor) -> Path:
    return change(folder, lambda held: held | tensors)


def walked(folder: Path) -> Tensor:
    checkpoint = Checkpoint.open(folder)
    head = StoredHead.of(checkpoint).read()
    return torch.stack([head.logits(hidden) for hidden in open_model(checkpoint).run(TOKENS)])


def forward(module: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return module(input_ids=TOKENS).logits


def transformers_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    return forward(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def random_model(folder: Path, family: str, **values: object) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **values})).save_pretrained(folder)
    return folder


def shards(folder: Path, parts: dict[str, dict[str, Tensor]], listed: dict[str, str] | None = None) -> Path:
    """Store a checkpoint as some files with an index, which lists what they hold or something else."""
    (folder / "model.safetensors").unlink()
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    held = {name: file for file, tensors in parts.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": held if listed is None else listed}))
    return folder


def load_original(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Return the checkpoint's causal language model with all weights in `dtype`."""
    from transformers import AutoModelForCausalLM

    from bitplan.models.original import original_source

    with original_source(folder) as (source, arguments):
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **arguments).eval()
