"""What differs between model families: the names of blocks, the categories of layers, and the layers that a runtime fuses."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A layer's category is the first entry whose pattern matches the end of its name.
CATEGORIES: tuple[tuple[str, str], ...] = (
    (r"(lm_head|embed_out)$", "lm_head"),
    (r"(embed_tokens|embed_positions|embed_in|wte|wpe|word_embeddings)$", "embedding"),
    (r"(mlp|block_sparse_moe|feed_forward)\.(gate|router|shared_expert_gate)$", "router"),
    (r"(router\.layer)$", "router"),
    # Shared experts, which every token uses, count as experts: shared_expert of Qwen2-MoE, shared_experts of DeepSeek.
    (r"(experts\.\d+|shared_experts?)\.(gate_proj|w1)$", "expert_gate"),
    (r"(experts\.\d+|shared_experts?)\.(up_proj|w3)$", "expert_up"),
    (r"(experts\.\d+|shared_experts?)\.(down_proj|w2)$", "expert_down"),
    (r"(q_proj|q_a_proj|q_b_proj)$", "attn_q"),
    (r"(k_proj)$", "attn_k"),
    (r"(v_proj)$", "attn_v"),
    (r"(kv_a_proj_with_mqa|kv_b_proj)$", "attn_kv"),
    (r"(query_key_value|c_attn|qkv_proj|Wqkv)$", "attn_qkv"),
    (r"(o_proj|out_proj|\w*(attn|attention)\.(dense|c_proj))$", "attn_o"),
    (r"(gate_proj)$", "mlp_gate"),
    (r"(gate_up_proj)$", "mlp_gate_up"),
    (r"(up_proj|fc1|fc_in|c_fc|dense_h_to_4h)$", "mlp_up"),
    (r"(down_proj|fc2|fc_out|mlp\.c_proj|dense_4h_to_h)$", "mlp_down"),
)
PROTECTED_CATEGORIES = frozenset({"lm_head", "embedding", "router"})
KINDS = {"expert": "expert", "attn": "attention"}
# Layers of one block that read the same input, and that runtimes store as one matrix.
FUSED = {"attn_q": "qkv", "attn_k": "qkv", "attn_v": "qkv", "mlp_gate": "gate_up", "mlp_up": "gate_up"}
SHARED_EXPERT = re.compile(r"\.shared_experts?\.(gate_proj|up_proj|w1|w3)$")
# Values that old checkpoints store next to the parameters: masks, constants, rotary frequencies. transformers recomputes them.
BUFFERS = re.compile(r"(^|\.)((attn|attention)\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
# transformers 5 renames some tensors when it loads a checkpoint: (end of its name, end of the stored name).
RENAMED: tuple[tuple[str, str], ...] = (
    (r"\.mlp\.experts\.(\d+)\.gate_proj\.weight$", r".block_sparse_moe.experts.\1.w1.weight"),
    (r"\.mlp\.experts\.(\d+)\.down_proj\.weight$", r".block_sparse_moe.experts.\1.w2.weight"),
    (r"\.mlp\.experts\.(\d+)\.up_proj\.weight$", r".block_sparse_moe.experts.\1.w3.weight"),
    (r"\.mlp\.(gate|router)\.weight$", r".block_sparse_moe.gate.weight"),
)
TOKEN_TABLE = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings)$")
EXPERT = re.compile(r"^(?P<before>.*\.experts)\.(?P<number>\d+)\.(?P<projection>[^.]+)$")
BLOCK = re.compile(r"^(?P<prefix>(?:.*\.)?(?:layers|h|blocks))\.(?P<index>\d+)\.")


@dataclass(frozen=True)
class Place:
    """The position of a tensor: the name of the list of blocks and the block's index; ("", -1) outside the blocks."""

    prefix: str
    index: int


def stored_names(name: str) -> Iterator[str]:
    """Yield the names under which a checkpoint may store the parameter that transformers calls `name`, its own first."""
    yield name
    for pattern, stored in RENAMED:
        if re.search(pattern, name):
            yield re.sub(pattern, stored, name)


def merged_name(layer: str) -> str:
    """Return the name of the tensor into which a runtime merges the experts of a projection: without the expert's number."""
    match = EXPERT.match(layer)
    return f"{match['before']}.{match['projection']}" if match else layer


def category_of(layer: str) -> str:
    """Return a layer's category, e.g. "attn_q" or "mlp_up"; "other" if no pattern matches."""
    return next((category for pattern, category in CATEGORIES if re.search(rf"(^|\.){pattern}", layer)), "other")


def kind_of(category: str) -> str:
    """Return "expert", "attention" or "other": the classes that the random method distinguishes."""
    return KINDS.get(category.split("_")[0], "other")


def place_of(name: str) -> Place:
    """Return the block of a tensor or layer."""
    match = BLOCK.match(name)
    return Place(match["prefix"], int(match["index"])) if match else Place("", -1)


def fusion_group_of(layer: str, category: str) -> str:
    """Return the name of the layer's fusion group, e.g. "model.layers.0.qkv"; "" if it is not fused.

    The experts of one projection are a group: a runtime stores them as one tensor.
    """
    if EXPERT.match(layer):
        return merged_name(layer)
    place, fused = place_of(layer), "gate_up" if SHARED_EXPERT.search(layer) else FUSED.get(category)
    return f"{place.prefix}.{place.index}.{fused}" if fused and place.index >= 0 else ""
