"""Tiny random models of every family that the project speaks of, made on the spot with real tokenizers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conftest import ROOT

TEXT = ROOT / "demo" / "calibration.txt"
SENTENCEPIECE = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Family:
    """A family: settings of a tiny model, the layers of a block that plans may change, and what llama.cpp makes of it."""

    config: dict[str, Any]
    layers: tuple[str, ...]
    prefix: str = "model.layers"
    gguf: bool = True
    tokenizer: str = "byte-level"
    protected: frozenset[str] = field(default_factory=frozenset)


def _experts(count: int, before: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{before}.{number}.{name}" for number in range(count) for name in names)


def _mlp(before: str) -> tuple[str, ...]:
    return tuple(f"{before}.{name}" for name in ("gate_proj", "up_proj", "down_proj"))


OF_EXPERTS = _experts(4, "mlp.experts", ("gate_proj", "up_proj", "down_proj"))
SQUARE = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
OPT = {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64}
NEOX = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
FAMILIES: dict[str, Family] = {
    "llama": Family({**GROUPED, "tie_word_embeddings": False}, GATED, tokenizer="sentencepiece"),
    "mistral": Family(GROUPED, GATED, tokenizer="sentencepiece"),
    "qwen2": Family({**GROUPED, "tie_word_embeddings": True}, GATED),
    "qwen3": Family({**GROUPED, "head_dim": 16}, GATED),
    "gemma": Family({**GROUPED, "head_dim": 16}, GATED, tokenizer="sentencepiece"),
    "gemma2": Family(SQUARE, GATED, tokenizer="sentencepiece"),
    "gemma3_text": Family(SQUARE, GATED, tokenizer="sentencepiece"),
    "opt": Family(OPT, (*ATTENTION[:3], "self_attn.out_proj", "fc1", "fc2"), prefix="model.decoder.layers", gguf=False),
    "gpt2": Family(GPT2, ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), prefix="transformer.h"),
    "gpt_neox": Family(COMMON, NEOX, prefix="gpt_neox.layers"),
    "mixtral": Family(
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        (*ATTENTION, *_experts(4, "block_sparse_moe.experts", ("w1", "w2", "w3"))),
        tokenizer="sentencepiece",
        protected=frozenset({"block_sparse_moe.gate"}),
    ),
    "qwen2_moe": Family(
        {**EXPERTS, "shared_expert_intermediate_size": 64},
        (*ATTENTION, *OF_EXPERTS, *_mlp("mlp.shared_expert")),
        protected=frozenset({"mlp.gate", "mlp.shared_expert_gate"}),
    ),
    "olmoe": Family(
        {**EXPERTS, "num_key_value_heads": 4}, (*ATTENTION, *OF_EXPERTS), protected=frozenset({"mlp.gate"})
    ),
    "qwen3_moe": Family(
        {**EXPERTS, "head_dim": 16, "norm_topk_prob": True},
        (*ATTENTION, *OF_EXPERTS),
        protected=frozenset({"mlp.gate"}),
    ),
    "phi3": Family(
        GROUPED,
        ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        tokenizer="sentencepiece",
    ),
    "falcon": Family(
        {**COMMON, "alibi": False, "new_decoder_architecture": False, "multi_query": True, "num_kv_heads": 1},
        ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        prefix="transformer.h",
    ),
    "bloom": Family(
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
        ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        prefix="transformer.h",
    ),
}


def _byte_level_tokenizer(folder: Path) -> int:
    """Train a small byte-level BPE tokenizer, as GPT-2's; return its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train([str(TEXT)], trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet))
    PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return 640  # as many models do, more rows than the tokenizer has tokens


def _tokenizer(kind: str, folder: Path) -> int:
    import shutil

    if kind == "byte-level":
        return _byte_level_tokenizer(folder)
    for name in SENTENCEPIECE:
        shutil.copy(ROOT / "demo" / "model" / name, folder / name)
    return 1536


def make_family(name: str, folder: Path) -> Path:
    """Save a tiny random model of a family with a tokenizer; return its folder. Norms and biases are random too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    size = _tokenizer(family.tokenizer, folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=size, **family.config)
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return folder
