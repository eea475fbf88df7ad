"""NVFP4 in checkpoints of packed tensors: loaded by transformers as simulated, one scale where vLLM stores layers as one."""

import pytest
import torch
from safetensors.torch import load_file

from bitplan.core.errors import UserError
from bitplan.models.layers import Layer
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.runtimes.compressed_tensors.runtime import RUNTIME
from bitplan.runtimes.compressed_tensors.schemes import layer_verdict
from bitplan.runtimes.compressed_tensors.scores import load_exact
from bitplan.runtimes.compressed_tensors.shared_scales import with_shared_scales
from bitplan.runtimes.fusion import fusion_groups, unlike
from tests.families import make_family
from tests.unit.rounding.test_rounded_models import rounded
from tests.unit.runtimes.packed_models import described, exported, simulated
from tests.unit.runtimes.test_compressed_tensors import assert_same
from tests.unit.search.opened_models import Opened


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return described(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))


def scales_in(folder, end: str) -> dict[str, float]:
    """{layer: the scale of its matrix} of the layers whose names end so."""
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    suffix = f"{end}.weight_global_scale"
    return {name: tensor.item() for name, tensor in tensors.items() if name.endswith(suffix)}


def of_both(info) -> Plan:
    """nvfp4_pow2, but for the output projections, which have GGUF's type."""
    layers = {
        layer.name: LayerPlan("gguf_nvfp4" if "o_proj" in layer.name else "nvfp4_pow2") for layer in info.quantizable
    }
    return Plan(layers)


def test_transformers_loads_powers_of_two_and_ggufs_type_as_they_were_simulated(llama, tmp_path):
    plan = of_both(llama.info)
    report = exported(RUNTIME, llama, plan, tmp_path / "packed")
    assert report["differences"] == 0 and report["types"] == {"nvfp4 g16": len(llama.info.quantizable)}
    assert_same(simulated(llama, plan, tmp_path / "simulated"), load_exact(tmp_path / "packed"))
    assert set(scales_in(tmp_path / "packed", "o_proj").values()) == {1.0}


def test_layers_that_vllm_stores_as_one_have_one_scale_and_their_own_values(llama, tmp_path):
    plan = uniform_plan(llama.info, "nvfp4_pow2")
    expected = simulated(llama, plan, tmp_path / "simulated")
    scales = {}
    for fusion in ("repair", "keep"):
        exported(RUNTIME, llama, plan, tmp_path / fusion, fusion)
        assert_same(expected, load_exact(tmp_path / fusion))
        scales[fusion] = [scales_in(tmp_path / fusion, f"layers.0.self_attn.{name}_proj") for name in "qkv"]
    alike = [next(iter(each.values())) for each in scales["repair"]]
    assert len(set(alike)) == 1
    assert alike[0] == min(next(iter(each.values())) for each in scales["keep"])


def test_scales_that_are_no_powers_of_two_get_them_where_layers_are_stored_as_one(llama, tmp_path):
    plan = uniform_plan(llama.info, "nvfp4")
    groups = unlike(fusion_groups(RUNTIME.verdict, plan, llama.info))
    assert len(groups) == 4 and "q_proj nvfp4 g16 with its own scale" in groups[0].summary
    assert all(group.extra_bits == 0 for group in groups)
    with pytest.raises(UserError, match=r"RUNTIME-FUSION-DIFFERS.*its own scale"):
        exported(RUNTIME, llama, plan, tmp_path / "refused", "refuse")
    report = exported(RUNTIME, llama, plan, tmp_path / "packed")
    written = {row["layer"]: row["written"] for row in report["layers"]}
    fused = {layer.name for group in groups for layer in group.layers}
    assert {name: form == "nvfp4_pow2" for name, form in written.items()} == {name: name in fused for name in written}
    assert report["differences"] == len(fused)


def test_transformers_rounds_the_values_of_a_published_scale_to_bfloat16(llama, tmp_path):
    plan = uniform_plan(llama.info, "nvfp4")
    exported(RUNTIME, llama, plan, tmp_path / "packed", "keep")
    ours, theirs = simulated(llama, plan, tmp_path / "simulated"), load_exact(tmp_path / "packed")
    for layer in llama.info.quantizable:
        weight = ours.get_parameter(f"{layer.name}.weight")
        loaded = theirs.state_dict()[f"{layer.name}.weight"]
        assert torch.equal(loaded, weight.to(torch.bfloat16).to(torch.float32)) and not torch.equal(loaded, weight)


def test_rounded_codes_are_stored_as_they_are(tmp_path):
    made = Opened(make_family("llama", tmp_path / "model"))
    plan = rounded(made, uniform_plan(made.info, "nvfp4_pow2"), tmp_path / "rounded")
    report = exported(RUNTIME, described(tmp_path / "model"), plan, tmp_path / "packed")
    assert report["rounded"] == {"exact": len(made.info.quantizable)}
    theirs = load_exact(tmp_path / "packed").state_dict()
    for layer in made.info.quantizable:
        assert torch.equal(theirs[f"{layer.name}.weight"], plan.rounded.weight(layer.name))


def tensors_of(scale: float, block: float, code: int = 0x22) -> dict[str, torch.Tensor]:
    """A matrix (1, 16) of one block by the ends of its tensors' names."""
    return {
        "weight_global_scale": torch.tensor([scale]),
        "weight_scale": torch.tensor([[block]]).to(torch.float8_e4m3fn),
        "weight_packed": torch.full((1, 8), code, dtype=torch.uint8),
    }


def named(**layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}.{end}": tensor for name, tensors in layers.items() for end, tensor in tensors.items()}


def test_blocks_that_a_shared_scale_does_not_reach_are_an_error_unless_they_are_zeros():
    wide, narrow = tensors_of(4.0, 448.0), tensors_of(4096.0, 15 / 1024)
    zeros = tensors_of(4096.0, 0.125 * 9 / 8, 0x88)
    shared = with_shared_scales(
        named(a=wide, b=tensors_of(16.0, 1.0), c=zeros, alone=narrow), [["a", "b", "c"], ["alone"]]
    )
    assert shared["a.weight_scale"].item() == 448 and shared["b.weight_scale"].item() == 0.25
    assert [shared[f"{name}.weight_global_scale"].item() for name in ("a", "b", "c", "alone")] == [4, 4, 4, 4096]
    with pytest.raises(UserError, match=r"RUNTIME-NVFP4-RANGE\] b: "):
        with_shared_scales(named(a=wide, b=narrow), [["a", "b"]])


LINEAR = Layer("model.layers.0.mlp.up_proj", "mlp_up", (64, 256), 0, "", False)


@pytest.mark.parametrize(
    ("made", "status", "reason"),
    [
        (LayerPlan("nvfp4"), "exact", "transformers rounds the values to bfloat16"),
        (LayerPlan("nvfp4_pow2"), "exact", ""),
        (LayerPlan("nvfp4_pow2", group_size=32), "exact", ""),
        (LayerPlan("gguf_nvfp4"), "exact", ""),
        (LayerPlan("nvfp4_pow2", "mxfp8"), "approximate", "inputs stay at 16 bits"),
        (LayerPlan("iq3_s"), "refused", "no packing for iq3_s"),
    ],
)
def test_a_layer_is_judged_by_its_format(made, status, reason):
    verdict = layer_verdict(LINEAR, made)
    assert verdict.status == status and reason in verdict.reason
    assert status == "refused" or verdict.stored_bits == 4.5
