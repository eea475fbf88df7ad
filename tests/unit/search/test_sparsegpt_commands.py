"""The command that compresses a model, and plans whose compressed weights do not stand beside them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bitplan.core.errors import UserError
from bitplan.evaluate.perplexity import plan_hidden, plan_nll
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.compressed import read_compressed
from bitplan.plans.plan import LayerPlan, read_plan, write_plan
from bitplan.reference.reference import make_reference
from bitplan.rounding.channel_grid import Quantizer
from bitplan.search.sparsegpt.layer import SparseGPT
from tests.families import TEXT, make_family
from tests.unit.search.opened_models import HALF, Opened, plain_nll


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return Opened(make_family("llama", tmp_path_factory.mktemp("llama") / "model"))


@pytest.fixture
def written(llama, tmp_path):
    write_plan(tmp_path / "plan.json", llama.plan(tmp_path / "made"), LayerPlan(), llama.info)
    return tmp_path / "plan.json"


def changed(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


BAD = {
    "no folder": (lambda p: (p.parent / "compressed/index.json").unlink(), "index.json"),
    "another plan's folder": (lambda p: changed(p, lambda c: c["compressed"].update(sha256="0" * 64)), "COMPRESSED-OTHER-PLAN"),
    "a file that is gone": (lambda p: (p.parent / "compressed/block-00001.safetensors").unlink(), "COMPRESSED-INCOMPLETE"),
    "no digest": (lambda p: changed(p, lambda c: c["compressed"].clear()), "sha256"),
    "a layer without a size": (lambda p: changed(p, lambda c: c["overrides"][1].pop("stored_bits")), "stored_bits"),
    "a size for a plain format": (lambda p: changed(p, lambda c: c["overrides"][1].update(wq="int4")), "stored_bits"),
    "a path out of the folder": (
        lambda p: changed(
            p.parent / "compressed/index.json", lambda c: c["files"].update(x="../../../etc/passwd")
        ),
        "COMPRESSED-INVALID",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_plans_whose_weights_do_not_stand_beside_them_are_refused(case, written, llama):
    spoil, told = BAD[case]
    spoil(written)
    with pytest.raises(UserError, match=told):
        read_plan(written, llama.info)


def test_a_cut_file_is_refused_when_its_layer_is_wanted(written, llama):
    file = written.parent / "compressed/block-00001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    plan = read_plan(written, llama.info)
    with pytest.raises(UserError, match="COMPRESSED-INVALID"):
        plan_hidden(llama.model, llama.info, plan, llama.reference.tokens, QuantizedWeights())


def test_one_plans_weights_never_replace_anothers(llama, written, tmp_path):
    other = llama.plan(tmp_path / "other", replace(HALF, targets=(3.0,)))
    with pytest.raises(UserError, match="COMPRESSED-OTHER-PLAN"):
        write_plan(tmp_path / "second.json", other, LayerPlan(), llama.info)
    assert read_compressed(tmp_path / "compressed").digest == read_plan(written, llama.info).compressed.digest


def test_the_command_writes_checkpoint_plan_and_statistics(command, llama, demo, tmp_path):
    outputs = {
        "--output-config": tmp_path / "config.json",
        "--output-plan": tmp_path / "plan.json",
        "--output-stats": tmp_path / "layers.tsv",
        "--save": tmp_path / "out",
    }
    words = [word for pair in outputs.items() for word in pair]
    how = ("--sparsity", 0.5, "--target_avg_bits", 4.0, "--nsamples", 4, "--seqlen", 32, "--debug")
    text = demo / "evaluation.txt"
    made = command("sparsegpt_enhanced.py", llama.checkpoint.folder, TEXT, *how, "--seed", 3, *words)
    assert "平均比特数: 4.000 bits" in made.stdout and "every code is stored" in made.stdout
    assert "model.layers.1.mlp.down_proj: activation " in made.stderr
    rows = (tmp_path / "layers.tsv").read_text().splitlines()
    assert len(rows) == 1 + len(llama.info.quantizable) and rows[0].startswith("layer\tcategory\tparams\tchannels")
    again = read_plan(tmp_path / "out/bitplan/plan.json", llama.info)
    tokens = make_reference(llama.model, text, 32, 4, "fp32")
    wanted = plan_nll(llama.model, llama.info, again, tokens, QuantizedWeights()).double().mean().item()
    assert plain_nll(tmp_path / "out", tokens.tokens) == pytest.approx(wanted, abs=1e-6)


def test_the_command_writes_the_same_bytes_twice(command, llama, tmp_path):
    for name in ("a", "b"):
        how = ("--target-avg-bits", 3.5, "--nsamples", 4, "--seqlen", 32, "--bit-allocation-method", "optimal")
        command(
            "sparsegpt_enhanced.py", llama.checkpoint.folder, TEXT, *how, "--output-plan", tmp_path / name / "p.json"
        )
    first, second = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in "ab"
    )
    first.pop(Path("p.json.meta.json")), second.pop(Path("p.json.meta.json"))
    assert first == second and len(first) == 4


def test_a_plan_and_a_configuration_in_two_folders_are_refused_before_anything_slow(command, llama, tmp_path):
    outputs = ("--output-plan", tmp_path / "a/p.json", "--output-config", tmp_path / "b/c.json")
    made = command("sparsegpt_enhanced.py", llama.checkpoint.folder, TEXT, "--seqlen", 32, *outputs, ok=False)
    assert "SPARSEGPT-TWO-FOLDERS" in made.stderr and "Traceback" not in made.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--weights", "hesian=1"), "Did you mean 'hessian'"),
        (("--target_avg_bits", "1.5"), "widths 2 and 8"),
        (("--target_avg_bits", "3.5", "--bit_allocation_method", "uniform"), "SPARSEGPT-TARGET"),
        (("--target_avg_bits", "3", "4", "5"), "3 parts of 2 blocks"),
        (("--prunen", "4", "--prunem", "2"), "4:2"),
        (("--sparsity", "1"), "out of range"),
        (("--weights", "hessian"), "NAME=NUMBER"),
    ],
)
def test_flags_that_make_no_sense_are_refused(words, told, command, llama):
    made = command("sparsegpt_enhanced.py", llama.checkpoint.folder, TEXT, "--seqlen", 32, *words, ok=False)
    assert told in made.stderr and "Traceback" not in made.stderr and made.returncode == 2


def test_the_documents_names_are_imported_from_the_command(llama):
    import importlib
    import sys

    from tests.conftest import SCRIPTS

    assert str(SCRIPTS) in sys.path
    module = importlib.import_module("sparsegpt_enhanced")
    assert module.SparseGPT is SparseGPT and module.QuantizationStats and module.Quantizer is Quantizer
