"""The token embedding and the output matrix in a format: simulated, written and measured as if transformers' own were replaced."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bitplan.core.errors import UserError
from bitplan.core.files import read_table
from bitplan.evaluate.perplexity import plan_nll, score_plan
from bitplan.evaluate.scores import summarize
from bitplan.evaluate.whole_model import open_whole_model
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo, describe
from bitplan.models.walk import StreamedModel, open_model
from bitplan.plans import apply_embeddings as quantized_outside
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, average_bits, expand, uniform_plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import Reference, make_reference
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.export import export_plan
from bitplan.runtimes.gguf.scores import score_gguf
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from bitplan.search.genetic.rows import read_sensitivity
from bitplan.search.genetic.run import palette_table
from bitplan.sensitivity.agreement import agreement, read_rows
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings
from bitplan.sensitivity.measure import merged
from bitplan.sensitivity.run import make_table, write_sensitivity
from tests.families import TEXT, make_family

FAMILIES = ("llama", "qwen2", "gpt2", "gemma", "mixtral")


@dataclass(frozen=True)
class Small:
    """A tiny model, and its answer on a text."""

    folder: Path
    checkpoint: Checkpoint
    info: ModelInfo
    model: StreamedModel
    reference: Reference

    @classmethod
    def of(cls, folder: Path, text: Path = TEXT, length: int = 32) -> "Small":
        checkpoint = Checkpoint.open(folder)
        model = open_model(checkpoint)
        return cls(folder, checkpoint, describe(checkpoint), model, make_reference(model, text, length, 4, "fp32"))

    @property
    def names(self) -> list[str]:
        """Embedding and output matrix; of a tied model the embedding, which decides both."""
        return [layer.name for layer in self.info.layers if layer.is_embedding and not layer.tied]

    def plan(self, *formats: str, blocks: str = "bf16") -> Plan:
        """The embedding, and the output matrix, in formats; everything else in another."""
        named = zip(self.names, formats, strict=False)
        entries = [{"pattern": name, "wq": wq, "embeddings": True} for name, wq in named]
        return expand({"default": {"wq": blocks}, "overrides": entries}, self.info.layers)

    def nll(self, plan: Plan) -> float:
        return plan_nll(self.model, self.info, plan, self.reference, QuantizedWeights()).double().mean().item()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    cache = {}

    def of(family: str) -> Small:
        if family not in cache:
            cache[family] = Small.of(make_family(family, tmp_path_factory.mktemp(family) / "model"))
        return cache[family]

    return of


def transformers_nll(module, tokens: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = module(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def replaced(folder: Path, *formats: str):
    """Transformers' model with its embedding, and its output matrix, rounded as a whole."""
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    matrices = [module.get_input_embeddings().weight, module.get_output_embeddings().weight]
    with torch.no_grad():
        for matrix, wq in zip(matrices, formats, strict=False):
            matrix.copy_(FORMATS[wq].roundtrip(matrix))
    return module


# -------------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wq", ["q4_0", "int4", "mxfp4"])
def test_a_plan_scores_as_transformers_does_with_the_matrices_replaced(small, family, wq):
    one = small(family)
    expected = transformers_nll(replaced(one.folder, wq, wq), one.reference.tokens)
    actual = one.nll(one.plan(wq, wq))
    assert actual == pytest.approx(expected, abs=1e-5) and actual != pytest.approx(
        one.nll(uniform_plan(one.info, "bf16")), abs=1e-5
    )


def test_the_output_matrix_alone_is_scored_and_not_embedded(small):
    one = small("llama")
    plan = Plan({"lm_head": LayerPlan("q4_0", embeddings=True)})
    module = AutoModelForCausalLM.from_pretrained(one.folder, dtype=torch.float32)
    with torch.no_grad():
        module.lm_head.weight.copy_(FORMATS["q4_0"].roundtrip(module.lm_head.weight))
    expected = transformers_nll(module, one.reference.tokens)
    assert one.nll(plan) == pytest.approx(expected, abs=1e-5) and one.nll(one.plan("q4_0", "q4_0")) != pytest.approx(
        expected
    )


def test_how_many_rows_are_quantized_at_once_changes_nothing(small, monkeypatch):
    one = small("qwen2")
    plan = one.plan("q5_0")
    expected = one.nll(plan)
    monkeypatch.setattr(quantized_outside, "VALUES_AT_ONCE", 7 * 64)
    assert one.nll(plan) == expected


def test_a_second_plan_quantizes_the_output_matrix_no_more(small):
    one, weights = small("llama"), QuantizedWeights()
    for wq in ("bf16", "q8_0"):
        plan_nll(one.model, one.info, one.plan("bf16", "q4_0", blocks=wq), one.reference, weights)
    # The 14 layers of the second plan, and the output matrix once.
    assert weights.quantizations == 15


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_model_under_a_plan_has_its_matrices_and_gets_its_own_back(small, family):
    one = small(family)
    fresh = open_model(one.checkpoint)
    loaded, plan = open_whole_model(fresh, one.info, QuantizedWeights()), one.plan("q4_0", "q8_0")
    for _ in range(2):
        with loaded.under(plan) as module:
            assert transformers_nll(module, one.reference.tokens) == pytest.approx(one.nll(plan), abs=1e-5)
        with loaded.under(uniform_plan(one.info, "bf16")) as module:
            actual = transformers_nll(module, one.reference.tokens)
            assert actual == pytest.approx(one.nll(uniform_plan(one.info, "bf16")), abs=1e-5)


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wq", ["q4_0", "mxfp4"])
def test_the_written_checkpoint_scores_as_the_plan_and_a_tied_one_stays_tied(small, family, wq, tmp_path, monkeypatch):
    one = small(family)
    plan = one.plan(wq, wq, blocks="q8_0")
    monkeypatch.setattr(quantized_outside, "VALUES_AT_ONCE", 100 * 64)
    write_checkpoint(tmp_path / "out", one.checkpoint, one.info, plan, QuantizedWeights(limit=0))
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert transformers_nll(module, one.reference.tokens) == pytest.approx(one.nll(plan), abs=1e-5)
    assert describe(Checkpoint.open(tmp_path / "out")).layers == one.info.layers
    before, after = (load_file(folder / "model.safetensors") for folder in (one.folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    shared = module.get_input_embeddings().weight is module.get_output_embeddings().weight
    assert shared == one.checkpoint.tied


def test_a_matrix_that_a_tied_checkpoint_stores_as_the_output_is_written_as_the_embeddings(small, tmp_path):
    from safetensors.torch import save_file

    one = small("qwen2")
    (tmp_path / "model").mkdir()
    for file in one.folder.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(one.folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    other = Small.of(tmp_path / "model")
    plan = other.plan("q4_0")
    assert other.names == ["model.embed_tokens"] and other.nll(plan) == pytest.approx(
        one.nll(one.plan("q4_0")), abs=1e-6
    )
    write_checkpoint(tmp_path / "out", other.checkpoint, other.info, plan, QuantizedWeights(limit=0))
    matrix = load_file(tmp_path / "out/model.safetensors")["lm_head.weight"]
    assert torch.equal(matrix, FORMATS["q4_0"].roundtrip(tensors["lm_head.weight"]))


# --------------------------------------------------------------------------------------------------------------- GGUF


def exported(one: Small, plan: Plan, folder: Path):
    convert(one.checkpoint, folder / "base.gguf")
    report = export_plan(folder / "base.gguf", folder / "made.gguf", one.info, plan)
    return folder / "made.gguf", report


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize(("family", "expected"), [("llama", ("Q4_0", "Q5_0")), ("qwen2", ("Q4_0", None))])
def test_the_file_holds_both_matrices_and_a_tied_one_once(small, family, expected, tmp_path):
    one = small(family)
    plan = one.plan("q4_0", "q5_0", blocks="q8_0")
    path, report = exported(one, plan, tmp_path)
    types = types_of(path)
    assert (types["token_embd.weight"], types.get("output.weight")) == expected
    stored = next(t for t in GGUFReader(path).tensors if t.name == "token_embd.weight")
    from gguf import dequantize

    table = one.checkpoint.read([one.model.table_name], torch.float32)[one.model.table_name]
    assert torch.equal(torch.from_numpy(dequantize(stored.data, stored.tensor_type)), FORMATS["q4_0"].roundtrip(table))
    real, simulated = (
        summarize(score_gguf(path, one.reference, 1)),
        summarize(score_plan(one.model, one.info, plan, one.reference, QuantizedWeights())),
    )
    assert real["ln_ppl_ratio"] == pytest.approx(simulated["ln_ppl_ratio"], abs=0.01)
    assert real["kl_mean"] == pytest.approx(simulated["kl_mean"], rel=0.2)
    assert not any(r["why"] for r in report["tensors"] if r["layer"] in one.names)


def test_the_bundled_models_file_scores_as_the_plan_with_embedding_and_output_in_k_types(demo, tmp_path):
    one = Small.of(demo / "model", demo / "evaluation.txt", 256)
    path, report = exported(one, plan := one.plan("q4_k", blocks="q5_k"), tmp_path)
    real = summarize(score_gguf(path, one.reference, 1))
    simulated = summarize(score_plan(one.model, one.info, plan, one.reference, QuantizedWeights()))
    assert real["ln_ppl_ratio"] == pytest.approx(simulated["ln_ppl_ratio"], abs=0.01)
    assert real["kl_mean"] == pytest.approx(simulated["kl_mean"], rel=0.2)
    assert set(report["types"]) == {"Q4_K", "Q5_K", "F32"}
    weights = sum(record["bytes"] for record in report["tensors"] if record["layer"])
    rest = sum(record["params"] for record in report["tensors"] if not record["layer"])
    assert average_bits(plan, one.info).avg_bits == pytest.approx((8 * weights + 16 * rest) / one.info.parameters)


# -------------------------------------------------------------------------------------------------------- sensitivity


def table_of(one: Small, output: Path, shard=(1, 1), embeddings=("q4_0", "q8_0"), anchors="1") -> Path:
    measure = MeasureSettings(anchors, 10**9, shard, embeddings=embeddings)
    settings = SensitivitySettings((Choice("q4_0"), Choice("q8_0")), tokens=64)
    make_table(PreparedModel(one.checkpoint, one.info, "fp32"), str(TEXT), 32, 4, settings, measure, None, output)
    return output


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_kl_of_the_plan_that_changes_that_matrix_alone(small, family, tmp_path):
    one = small(family)
    rows = read_table(table_of(one, tmp_path / "s.tsv"))
    embedding_rows = [row for row in rows if row["category"] in ("embedding", "lm_head")]
    assert [(row["layer"], row["format"]) for row in embedding_rows] == [
        (n, f) for n in one.names for f in ("q4_0", "q8_0")
    ]
    assert rows[-len(embedding_rows) :] == embedding_rows and len(one.names) == (1 if one.checkpoint.tied else 2)
    for row in embedding_rows:
        plan = expand(
            {"overrides": [{"pattern": row["layer"], "wq": row["format"], "embeddings": True}]}, one.info.layers
        )
        figures = summarize(score_plan(one.model, one.info, plan, one.reference, QuantizedWeights()))
        assert float(row["kld"]) == pytest.approx(figures["kl_mean"], rel=1e-5, abs=1e-9) and figures["kl_mean"] > 0
        assert float(row["kld_se"]) == pytest.approx(figures["kl_mean_error"], rel=1e-4)
        assert row["kld_from"] == "measured" and row["mse"] == row["weighted_error"] == row["smoothed"] == ""
        shape = next(layer.shape for layer in one.info.layers if layer.name == row["layer"])
        assert int(row["bytes"]) == FORMATS[row["format"]].bits_of(shape) / 8


def test_an_output_matrix_of_its_own_takes_no_forward(small, tmp_path):
    from bitplan.sensitivity.embeddings import embedding_candidates, embedding_row

    one = small("llama")
    before = one.model.tokens_forwarded
    embedding, output = embedding_candidates(one.info, ["q4_0"])
    embedding_row(one.model, one.info, one.reference, output)
    assert one.model.tokens_forwarded == before
    embedding_row(one.model, one.info, one.reference, embedding)
    assert one.model.tokens_forwarded == before + 2 * one.reference.tokens.numel()


def test_the_first_shard_measures_them_and_merging_gives_the_table_of_one_run(small, tmp_path):
    one = small("llama")
    whole_table = table_of(one, tmp_path / "whole.tsv")
    parts = [table_of(one, tmp_path / f"{i}.tsv", (i, 3)) for i in (1, 2, 3)]
    counts = [sum(row["category"] in ("embedding", "lm_head") for row in read_table(part)) for part in parts]
    assert counts == [4, 0, 0]
    write_sensitivity(tmp_path / "merged.tsv", *merged(parts, one.info))
    assert (tmp_path / "merged.tsv").read_bytes() == whole_table.read_bytes()


def test_searches_and_taus_look_at_the_layers_of_blocks_only(small, tmp_path):
    one, layers = small("llama"), small("llama").info.quantizable
    with_rows = table_of(one, tmp_path / "with.tsv", anchors="all")
    without = table_of(one, tmp_path / "without.tsv", embeddings=(), anchors="all")
    one_table, other = (
        palette_table(read_sensitivity(path), layers, ("q4_0", "q8_0"), "kld") for path in (with_rows, without)
    )
    assert one_table.layers == other.layers and (one_table.damage == other.damage).all()
    assert agreement(read_rows(with_rows)) == agreement(read_rows(without))


def test_formats_that_no_row_has_by_itself_are_refused_before_anything_is_measured(small, tmp_path):
    one = small("llama")
    before = one.model.tokens_forwarded
    with pytest.raises(UserError, match="PLAN-EMBEDDINGS-FORMAT"):
        table_of(one, tmp_path / "s.tsv", embeddings=("int4_tensor",))
    assert one.model.tokens_forwarded == before and not list(tmp_path.iterdir())


def test_matrices_whose_rows_fit_no_k_type_are_measured_in_its_substitute_once(small, tmp_path):
    one = small("llama")
    rows = read_table(table_of(one, tmp_path / "s.tsv", embeddings=("q2_k", "q3_k", "q8_0", "q6_k")))
    for name in ("model.embed_tokens", "lm_head"):
        requested = {row["format"]: row["asked"] for row in rows if row["layer"] == name}
        assert requested == {"q4_0": "q2_k q3_k", "q8_0": "q8_0 q6_k"}


def test_another_importance_matrix_or_other_formats_begin_a_measurement_anew(small, tmp_path, caplog):
    from bitplan.core.resume import PartialResults

    one = small("llama")
    settings = SensitivitySettings((Choice("q4_0"),), tokens=64)
    opened = PreparedModel(one.checkpoint, one.info, "fp32")
    digests = []
    results = [
        ({}, ()),
        ({}, ("q4_0",)),
        ({layer.name: torch.ones(layer.shape[1]) for layer in one.info.quantizable}, ()),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialResults, "open", lambda output, digest: digests.append(digest) or stop())
        for importance, embeddings in results:
            from bitplan.sensitivity.measure import measure_table

            measure = MeasureSettings("1", 10**9, embeddings=embeddings)
            with pytest.raises(Stopped):
                measure_table(opened, one.reference.tokens, settings, measure, tmp_path / "s", None, importance)
    assert len(set(digests)) == 3


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def test_measured_rows_are_of_weights_quantized_with_the_importance_matrix(small, tmp_path):
    from bitplan.statistics.importance import write_importance

    one = small("llama")
    torch.manual_seed(2)
    columns = {layer.name: torch.rand(layer.shape[1]).square() for layer in one.info.quantizable}
    write_importance(tmp_path / "i.safetensors", columns)
    settings = SensitivitySettings((Choice("q4_0"),), tokens=64)
    opened, output = PreparedModel(one.checkpoint, one.info, "fp32"), tmp_path / "s.tsv"
    how = (settings, MeasureSettings("all", 10**9), None, output, tmp_path / "i.safetensors")
    make_table(opened, str(TEXT), 32, 4, *how)
    row = read_table(output)[3]
    plan = Plan({row["layer"]: LayerPlan("q4_0")})
    weighed = replace(QuantizedWeights(), importance=columns)
    figures = [
        summarize(score_plan(one.model, one.info, plan, one.reference, weights))["kl_mean"]
        for weights in (weighed, QuantizedWeights())
    ]
    assert float(row["kld"]) == pytest.approx(figures[0], rel=1e-4) != pytest.approx(figures[1], rel=1e-3)
