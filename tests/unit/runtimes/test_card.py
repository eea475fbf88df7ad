"""The model card of an export: what hubs read, what people read, and nothing that is not known."""

import json
from dataclasses import replace

import export_plan
import model_card
import pytest

from bitplan.core.errors import UserError
from bitplan.core.provenance import versions
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.fitting import substituted
from bitplan.plans.plan import LayerPlan, read_plan
from bitplan.runtimes.card.card import card_text, check_report, make_card, read_scores
from bitplan.runtimes.card.source import Source, front_matter, source_of
from bitplan.runtimes.export import suggested_name

REPORT = {
    **{"runtime": "gguf", "model": "tiny", "plan": "best", "name": "tiny-best-4.51bpw", "file_bytes": 1234567},
    **{"avg_bits_file": 4.51, "types": {"Q4_K": 12, "F16": 2}, "differences": 0, "versions": versions()},
    **{"how_to_run": "llama-server -m model.gguf", "command": "python scripts/export_plan.py --runtime gguf"},
}
SCORES = {
    **{"scored": "gguf", "kl_mean": 0.01234567, "kl_mean_error": 0.0005, "ppl": 7.25, "ppl_error": 0.1},
    **{"base_ppl": 7.1, "top1_agreement": 0.95, "tokens": 508, "windows": 4},
}


@pytest.fixture(scope="module")
def info(tiny):
    return describe(Checkpoint.open(tiny))


@pytest.fixture(scope="module")
def plan(info, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(json.dumps({"default": {"wq": "q4_0"}, "overrides": [], "summary": {"method": "optimal"}}))
    return path, read_plan(path, info)


def test_a_card_has_the_figures_with_their_errors_and_what_it_takes_to_make_the_file_again(info, plan, demo):
    text = card_text(make_card(info, plan, REPORT, SCORES, demo / "calibration.txt"))
    for shown in (
        *(
            "# tiny-best-4.51bpw",
            "| plan | best, method optimal |",
            "4.51 of the file, with its metadata; ",
            "1,234,567 bytes",
        ),
        *(
            "2 x F16, 12 x Q4_K",
            "0.012346 ± 0.00098 nats",
            "7.25 ± 0.2 (base model 7.1)",
            "± is the 95 % interval",
            "the file, in its own runtime, 508 tokens",
        ),
        *("llama-server -m model.gguf", "export_plan.py --runtime gguf", "torch 2", info.fingerprint),
    ):
        assert shown in text, shown
    assert "SHA-256 of the calibration text" in text and "not named in the base model's files" in text


def test_the_front_matter_names_base_model_and_license_only_where_the_checkpoint_does(info, plan):
    card = make_card(info, plan, REPORT)
    assert set(front_matter(card_text(card))) == {"pipeline_tag", "tags"}
    known = Source("model", "somebody/a-model", "ab12", 'odd: "license"')
    held = front_matter(card_text(type(card)(known, "f", "optimal", 4.5, REPORT)))
    assert held["base_model"] == "somebody/a-model" and held["license"] == 'odd: "license"'
    assert held["tags"] == ["gguf", "bitplan", "quantized", "optimal"]


def test_a_card_tells_substitutes_and_warnings_and_one_that_stands_alone_sends_nobody_to_a_report(info, plan):
    tensors = [
        {"layer": "a.b", "why": "q6_k -> q8_0: 64 columns"},
        {"layer": "a.c", "why": ""},
        {"layer": "", "why": "kept"},
    ]
    made = make_card(info, plan, {**REPORT, "differences": 1, "tensors": tensors})
    assert "1. report.json names them" in card_text(made) and "## Warnings" not in card_text(made)
    told = replace(made, alone=True, warnings=("odd tokens",), substituted="1 of 2 layers have rows of 64 columns")
    text = card_text(told)
    assert "1. q6_k -> q8_0: 64 columns (1)" in text and "report.json" not in text
    assert "## Warnings\n\n- odd tokens\n" in text and "| substitutes | 1 of 2 layers" in text


def test_the_substitutes_of_a_plan_are_one_line_without_tied_matrices(info):
    layers = {layer.name: LayerPlan("q5_0", notes={"substitute": "q4_k -> q5_0: 64 columns"}) for layer in info.layers}
    own = sum(not layer.tied for layer in info.layers)
    told = f"{own} of {own} layers have rows of 64 columns, which the format chosen for them does not fit"
    assert substituted(layers, info.layers) == f"{told}, and get llama.cpp's substitute (q4_k -> q5_0)"
    assert substituted({}, info.layers) == ""


def test_a_file_that_was_not_scored_says_so(info, plan):
    assert "| KL, perplexity | not measured |" in card_text(make_card(info, plan, REPORT))


def test_the_license_comes_from_the_model_s_card_and_then_from_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text('{"license": "mit", "_name_or_path": "somebody/a-model"}')
    assert source_of(tmp_path) == Source(tmp_path.name, "somebody/a-model", "", "mit")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (tmp_path / ".download.json").write_text('{"id": "somebody/its-name", "commit": "ab12"}')
    assert source_of(tmp_path) == Source(tmp_path.name, "somebody/its-name", "ab12", "apache-2.0")


@pytest.mark.parametrize("text", ["", "# A title", "---\nlicense: x", "---\n- a\n---\n", "---\na: [\n---\n", "----\n"])
def test_a_card_without_front_matter_names_nothing(text):
    assert front_matter(text) == {}


def test_a_report_or_scores_that_lack_a_figure_are_refused_by_its_name(tmp_path):
    with pytest.raises(UserError, match="how_to_run"):
        check_report(tmp_path, {**REPORT, "how_to_run": None})
    (tmp_path / "scores.json").write_text(json.dumps({**SCORES, "kl_mean": None}))
    with pytest.raises(UserError, match="kl_mean"):
        read_scores(tmp_path / "scores.json")
    assert read_scores(None) is None


def test_the_export_writes_the_card_that_the_command_writes(tiny, tmp_path):
    (tmp_path / "plan.json").write_text('{"default": {"wq": "mxfp8"}, "overrides": []}')
    line = ["--model", tiny, "--plan", tmp_path / "plan.json"]
    export = ["--runtime", "compressed_tensors", "--output", tmp_path / "model", "--report", tmp_path / "report.json"]
    for script, flags in (
        (export_plan, [*line, *export, "--card", tmp_path / "one.md"]),
        (model_card, [*line, "--report", tmp_path / "report.json", "--output", tmp_path / "two.md"]),
    ):
        script.main(script.build_parser().parse_args(list(map(str, flags))))
    text = (tmp_path / "one.md").read_text()
    assert text == (tmp_path / "two.md").read_text() and "vllm serve model" in text and str(tmp_path) not in text


def test_the_name_that_is_suggested_for_a_file_is_one_word():
    assert suggested_name(("my model", "plan (2)"), {"avg_bits_file": 4.5}) == "my-model-plan-2-4.50bpw"
