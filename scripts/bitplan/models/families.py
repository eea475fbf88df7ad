"""What differs between model families: where the blocks are, what a layer is for, which layers a runtime fuses."""

import re
from dataclasses import dataclass

# A layer's category is the first entry whose pattern matches the end of its name.
CATEGORIES: tuple[tuple[str, str], ...] = (
    (r"(lm_head|embed_out)$", "lm_head"),
    (r"(embed_tokens|embed_positions|embed_in|wte|wpe)$", "embedding"),
    (r"(mlp|block_sparse_moe|feed_forward)\.(gate|router|shared_expert_gate)$", "router"),
    (r"experts\.\d+\.(gate_proj|w1)$", "expert_gate"),
    (r"experts\.\d+\.(up_proj|w3)$", "expert_up"),
    (r"experts\.\d+\.(down_proj|w2)$", "expert_down"),
    (r"(q_proj)$", "attn_q"),
    (r"(k_proj)$", "attn_k"),
    (r"(v_proj)$", "attn_v"),
    (r"(query_key_value|c_attn|qkv_proj)$", "attn_qkv"),
    (r"(o_proj|out_proj|attention\.dense|attn\.c_proj)$", "attn_o"),
    (r"(gate_proj)$", "mlp_gate"),
    (r"(up_proj|fc1|c_fc|dense_h_to_4h|gate_up_proj)$", "mlp_up"),
    (r"(down_proj|fc2|mlp\.c_proj|dense_4h_to_h)$", "mlp_down"),
)
PROTECTED_CATEGORIES = frozenset({"lm_head", "embedding", "router"})
KINDS = {"expert": "expert", "attn": "attention"}
# Layers of one block that read the same input, and that runtimes store as one matrix.
FUSED = {"attn_q": "qkv", "attn_k": "qkv", "attn_v": "qkv", "mlp_gate": "gate_up", "mlp_up": "gate_up"}
BLOCK = re.compile(r"^(?P<prefix>(?:.*\.)?(?:layers|h|blocks))\.(?P<index>\d+)\.")


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the name of its block's list and the block's index; ("", -1) outside the blocks."""

    prefix: str
    index: int


def category_of(layer: str) -> str:
    """Return a layer's category, e.g. "attn_q" or "mlp_up"; "other" when no pattern knows the name."""
    return next((category for pattern, category in CATEGORIES if re.search(rf"(^|\.){pattern}", layer)), "other")


def kind_of(category: str) -> str:
    """Return "expert", "attention" or "other": the classes that the random method tells apart."""
    return KINDS.get(category.split("_")[0], "other")


def place_of(name: str) -> Place:
    """Return the block in which a tensor or layer stands."""
    found = BLOCK.match(name)
    return Place(found["prefix"], int(found["index"])) if found else Place("", -1)


def fusion_group_of(layer: str, category: str) -> str:
    """Return the name of the layer's fusion group, e.g. "model.layers.0.qkv"; "" when it stands alone."""
    place, fused = place_of(layer), FUSED.get(category)
    return f"{place.prefix}.{place.index}.{fused}" if fused and place.index >= 0 else ""
