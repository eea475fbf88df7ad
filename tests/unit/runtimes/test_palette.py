"""The palette of what runtimes hold: their own verdicts, and no format that another of its kind makes useless."""

from itertools import combinations

import pytest

from bitplan.formats.facts import GGUF_TYPES
from bitplan.formats.importance import needing_importance
from bitplan.formats.pairs import parse_pair
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.runtimes.palette import candidates, held_bits, palette_of_runtimes, quantizes
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.runtimes.runtime import Runtime, Verdict
from bitplan.runtimes.verdicts import plan_verdicts

SETS = [names for count in (1, 2, 4) for names in combinations(RUNTIMES, count)]


def runtimes(*names: str) -> list[Runtime]:
    return [runtime_named(name) for name in names]


def test_llama_cpp_and_vllm_together_hold_mx_and_integers_under_scales_of_both_16_bit_types():
    made = palette_of_runtimes(runtimes("gguf", "compressed_tensors"))
    assert made == ("mxfp4_mse", "int4_bf16s_g32", "gguf_nvfp4", "int5_bf16s_g32", "int8_bf16s_g32", "bf16")


def test_a_runtime_alone_has_all_that_it_holds_in_every_case():
    alone = palette_of_runtimes(runtimes("compressed_tensors"))
    assert {"int2_bf16s", "int3_bf16s_g32", "mxfp8_mse"} <= set(alone)
    # A bfloat16 server rounds float16 scales, and transformers loads no zero points: these are not held in every case.
    assert not {"int4", "int4_g32", "fp16", "int4_asym_bf16s"} & set(alone)
    assert {"q2_k", "q4_k", "iq4_xs", "int4_g32"} <= set(palette_of_runtimes(runtimes("gguf")))


@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_every_runtime_holds_every_format_and_none_stands_behind_a_wider_one_of_its_kind(names):
    made = palette_of_runtimes(runtimes(*names))
    bits = [held_bits(name, runtimes(*names)) for name in made]
    assert made[-1] == "bf16" and quantizes(made) and None not in bits and bits == sorted(bits)
    kinds = [
        ("nvfp4" if "nvfp4" in name else "gguf" if name in GGUF_TYPES else name[:3], "asym" in name, width)
        for name, width in zip(made, bits, strict=True)
    ]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("names", [("gguf", "compressed_tensors"), ("mlx", "auto_round")], ids="-".join)
def test_the_layers_of_a_model_are_judged_as_the_palette_was(names, demo):
    info = describe(Checkpoint.open(demo / "model"))
    for name in palette_of_runtimes(runtimes(*names)):
        pair = parse_pair(name)
        plan = Plan({layer.name: LayerPlan(pair.wq, pair.aq, pair.group_size) for layer in info.quantizable})
        found = [verdict for runtime in runtimes(*names) for verdict in plan_verdicts(runtime, plan, info).values()]
        assert all(verdict.is_exact and verdict.always for verdict in found), name
        assert max(verdict.stored_bits for verdict in found) == held_bits(name, runtimes(*names))


def test_a_format_that_one_runtime_refuses_or_only_comes_near_is_not_in_it():
    def verdict(layer, made, info):
        return Verdict("approximate" if made.wq.startswith("int") else "refused", "x", 4.0, "toy")

    toy = Runtime("toy", "x.toy", verdict, dict, str)
    assert palette_of_runtimes([*runtimes("gguf"), toy]) == ()
    assert palette_of_runtimes([]) == () and not quantizes(("bf16",))
    assert toy.holds("int4_g32").status == "approximate" and held_bits("int4_g32", [toy]) is None


def test_formats_that_need_an_importance_matrix_are_left_out_without_one():
    with_it, without = (palette_of_runtimes(runtimes("gguf"), importance=given) for given in (True, False))
    assert {"iq1_s", "iq2_xxs", "iq3_xxs"} <= set(with_it)
    assert not needing_importance(without) and "q2_k" in without and not {"tq1_0", "tq2_0"} & {*with_it, *without}


def test_candidates_are_formats_of_weights_with_two_groups_of_integers():
    names = list(candidates())
    assert {"int4", "int4_g32", "int8_asym_bf16s_g32", "mxfp4", "q4_k"} <= set(names)
    assert not [
        name for name in names if "token" in name or "tensor" in name or (name.startswith("mx") and "_g" in name)
    ]
