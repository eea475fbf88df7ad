"""Allocations of tables that somebody else measured, as files for llama.cpp's own tool."""

import re

import pytest

from bitplan.core.errors import UserError
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, Plan
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.file import layer_names, read_gguf
from bitplan.runtimes.gguf.named_types import lines_for
from bitplan.runtimes.gguf.options import GGUFOptions
from bitplan.runtimes.gguf.type_lines import text_of
from tests.families import make_family

KINDS = ("q8_0", "q4_k", "q4_0", "gguf_mxfp4", "q5_1", "bf16", "iq4_nl", "q2_k")
# Formats as other tables write them.
THEIRS = {"gguf_mxfp4": "MXFP4", "q4_k": "q4_K", "iq4_nl": "IQ4_NL"}


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def model(request, tmp_path_factory):
    """A small model, its full-precision GGUF, and a plan of every type over its layers and its embedding."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint.open(make_family(request.param, folder / "model"))
    convert(checkpoint, folder / "base.gguf")
    info = describe(checkpoint)
    layers = {layer.name: LayerPlan(KINDS[place % len(KINDS)]) for place, layer in enumerate(info.quantizable)}
    table = next(layer.name for layer in info.layers if layer.token_table)
    return folder, info, Plan({**layers, table: LayerPlan("q5_0", embeddings=True)})


@pytest.mark.parametrize("unquantized", ["f16", "bf16"])
def test_the_lines_of_a_plan_by_the_checkpoints_names_are_those_of_its_export(model, unquantized):
    folder, info, plan = model
    export_plan(folder / "base.gguf", folder / "model.gguf", info, plan, GGUFOptions(unquantized=unquantized))
    formats = {name: made.wq for name, made in plan.layers.items()}
    lines = lines_for(formats, folder / "base.gguf", unquantized)
    assert text_of(lines) == (folder / "tensor_types.txt").read_text()


def test_the_names_of_tensors_and_types_as_llama_cpp_writes_them_give_the_same_lines(model):
    folder, info, plan = model
    by_tensor = {
        tensor: max(
            (plan.of(layer).wq for layer in layers), key=lambda name: {"q8_0": 8.5, "bf16": 16.0}.get(name, 4.5)
        )
        for tensor, layers in layer_names(read_gguf(folder / "base.gguf"), info).items()
    }
    theirs = {name: THEIRS.get(form, form) for name, form in by_tensor.items()}
    assert lines_for(theirs, folder / "base.gguf") == lines_for(by_tensor, folder / "base.gguf")


def test_without_a_base_file_the_table_has_the_names_and_its_layers_have_the_lines():
    lines = lines_for(
        {"blk.0.attn_q.weight": "q4_K", "token_embd.weight": "Q8_0", "blk.11.ffn_up.weight": "bf16"}, None
    )
    assert text_of(lines) == (
        "^blk\\.0\\.attn_q\\.weight$=q4_k\n^token_embd\\.weight$=q8_0\n^blk\\.11\\.ffn_up\\.weight$=f16\n"
    )


@pytest.mark.parametrize(
    ("formats", "code", "told"),
    [
        ({"model.layers.0.mlp.up_proj": "q4_k"}, "ALLOCATE-NO-TENSOR", "layer model.layers.0.mlp.up_proj"),
        ({"blk.0.attn_q.weight": "q4_kk"}, "ALLOCATE-NO-TYPE", "format q4_kk"),
        ({"blk.0.attn_q.weight": "int4_g32"}, "ALLOCATE-NO-TYPE", "format int4_g32"),
    ],
)
def test_names_that_are_no_tensors_and_formats_that_are_no_types_are_refused(formats, code, told):
    with pytest.raises(UserError) as caught:
        lines_for(formats, None)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == (code, told) and problem.hint


def test_layers_that_the_base_file_lacks_are_named(model):
    with pytest.raises(UserError, match="ALLOCATE-NO-TENSOR.*no tensor for blk.99.attn_q.weight"):
        lines_for({"blk.99.attn_q.weight": "q4_k"}, model[0] / "base.gguf")


def test_the_command_writes_a_file_for_each_target_and_says_how_to_use_it(invoke_allocation, tmp_path):
    made = invoke_allocation("--target-avg-bits", "5", "7", "--tensor-types", f"{tmp_path}/types-{{target}}.txt")
    assert f"--tensor-type-file {tmp_path}/types-5.txt BASE.gguf" in made
    fives, sevens = ((tmp_path / f"types-{target}.txt").read_text().splitlines() for target in (5, 7))
    assert len(fives) == len(sevens) == 4 and fives != sevens
    assert all(re.fullmatch(r"\^blk\\.[01]\\.ffn_(up|down)\\.weight\$=(q4_k|q8_0)", line) for line in fives + sevens)


def test_one_file_for_two_targets_is_refused(invoke_allocation, tmp_path):
    with pytest.raises(UserError, match="ALLOCATE-ONE-FILE"):
        invoke_allocation("--target-avg-bits", "5", "7", "--tensor-types", f"{tmp_path}/types.txt")


@pytest.fixture
def invoke_allocation(tmp_path, capsys):
    """A function that allocates a small table of somebody else's, and returns what is printed."""
    import allocate_bits

    rows = [
        f"blk.{block}.ffn_{part}.weight,1024,{form},{1024 * bits / 8:g},{2.0**-bits / (block + 1)}"
        for block in (0, 1)
        for part in ("up", "down")
        for form, bits in (("q4_K", 4.5), ("q8_0", 8.5))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["layer,params,format,bytes,kld", *rows]) + "\n")
    where = ["--sensitivity", str(tmp_path / "table.csv"), "--output", str(tmp_path / "front.json")]

    def invoke(*words: str) -> str:
        allocate_bits.main(allocate_bits.build_parser().parse_args([*where, *words]))
        return capsys.readouterr().out

    return invoke
