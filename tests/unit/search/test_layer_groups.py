"""Groups of layers that share a format: patterns, tables, models."""

import json

import pytest

from bitplan.core.errors import UserError
from bitplan.models.layer_patterns import match_layers
from bitplan.search.allocation.groups import layer_groups
from bitplan.search.allocation.patterns import matched_parts, told_apart

LAYERS = tuple(f"blk.{i}.{part}.weight" for i in (0, 1, 10) for part in ("attn_q", "attn_k", "ffn_up"))
QK = "blk.*.attn_q.weight,blk.*.attn_k.weight"


def members(groups, layers=LAYERS) -> set[tuple[str, ...]]:
    """The layers of each group, as a set."""
    return {tuple(name for name, held in zip(layers, groups, strict=True) if held == g) for g in groups if g}


def test_layers_are_a_group_where_the_star_stands_for_the_same():
    wanted = {(f"blk.{i}.attn_q.weight", f"blk.{i}.attn_k.weight") for i in (0, 1, 10)}
    assert members(layer_groups([QK], LAYERS)) == wanted


def test_plain_words_are_groups_of_what_has_the_same_name_before_them():
    assert layer_groups(["attn_q,attn_k"], LAYERS) == layer_groups([QK], LAYERS)


def test_a_set_matches_without_telling_apart():
    assert layer_groups(["blk.*.attn_[qk].weight"], LAYERS) == layer_groups([QK], LAYERS)


def test_two_stars_match_without_telling_apart():
    experts = tuple(f"l.{i}.experts.{e}.{part}" for i in range(2) for e in range(3) for part in ("gate", "up", "down"))
    made = layer_groups(["l.*.experts.**.gate,l.*.experts.**.up"], experts)
    assert {len(group) for group in members(made, experts)} == {6} and made[2] == ""
    assert {
        len(group) for group in members(layer_groups(["l.*.experts.*.gate,l.*.experts.*.up"], experts), experts)
    } == {2}


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "blk.?.*",
        "blk.[01].attn_?.weight",
        "blk.[!0].*",
        "**attn**",
        "blk.0.ffn_up.weight",
        "[",
        "*[]]*",
        "ffn_up",
        "attn_?",
    ],
)
def test_a_pattern_with_parts_matches_what_fnmatch_matches(pattern):
    names = (*LAYERS, "[", "a]b", "blk.x.y")
    assert sorted(matched_parts(pattern, names)) == match_layers(pattern, names)
    assert all(len(parts) == told_apart(pattern) for parts in matched_parts(pattern, names).values())


def test_a_table_names_the_group_of_each_layer(tmp_path):
    (tmp_path / "g.tsv").write_text(
        "layer\tgroup\nblk.0.attn_q.weight\tone\nblk.1.attn_q.weight\tone\nblk.0.ffn_up.weight\t\n"
    )
    (tmp_path / "g.csv").write_text("group,layer\none,blk.0.attn_q.weight\none,blk.1.attn_q.weight\n")
    for name in ("g.tsv", "g.csv"):
        assert members(layer_groups([str(tmp_path / name)], LAYERS)) == {("blk.0.attn_q.weight", "blk.1.attn_q.weight")}


def test_the_fusion_groups_of_a_model_hold_with_and_without_the_suffix(tiny, tmp_path):
    from bitplan.core.files import write_json
    from bitplan.models.layers import model_info

    info = model_info(tiny)
    write_json(tmp_path / "model.json", info.to_json())
    for suffix in ("", ".weight"):
        layers = [layer.name + suffix for layer in info.quantizable]
        made = layer_groups([str(tmp_path / "model.json")], layers)
        assert made == tuple(layer.fusion_group for layer in info.quantizable) and len(members(made, layers)) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["blk.*.attn_z.weight"], "'blk.*.attn_z.weight' matches no layer. Did you mean 'blk."),
        (["blk.*.attn_q.weight,*.*.ffn_up.weight"], "different numbers of *"),
        ([QK, "blk.*.attn_k.weight,blk.*.ffn_up.weight"], "blk.0.attn_k.weight: is in two groups"),
        (["groups.tsv"], "groups.tsv: is neither a file nor patterns"),
        (["{tmp}/other.tsv"], "'blk.0.attn_z' is no layer of the table"),
        (["{tmp}/twice.tsv"], "blk.0.attn_q.weight: is in two groups, a and b"),
        (["{tmp}/no.tsv"], "has no column group"),
        (["{tmp}/no.json"], "is not a model.json"),
        (["{tmp}/model.json"], "has none of the table's layers. It names layers as 'h.0.q'"),
    ],
)
def test_what_is_no_group_is_refused(words, told, tmp_path):
    (tmp_path / "other.tsv").write_text("layer\tgroup\nblk.0.attn_z\ta\n")
    (tmp_path / "twice.tsv").write_text("layer\tgroup\nblk.0.attn_q.weight\ta\nblk.0.attn_q.weight\tb\n")
    (tmp_path / "no.tsv").write_text("layer\tof\nblk.0.attn_q.weight\ta\n")
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "model.json").write_text(json.dumps({"layers": [{"name": "h.0.q", "fusion_group": "a"}]}))
    with pytest.raises(UserError) as caught:
        layer_groups([word.format(tmp=tmp_path) for word in words], LAYERS)
    assert told in str(caught.value.problems[0])
