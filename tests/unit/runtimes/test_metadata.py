"""What a plan's GGUF says of itself: its name, plan, bits, KL and calibration text, in the same bytes each time."""

import hashlib
import json

import pytest
from gguf import GGUFReader, LlamaFileType

from bitplan import __version__
from bitplan.core.errors import UserError
from bitplan.models.layers import model_info
from bitplan.plans.plan import average_bits, uniform_plan
from bitplan.runtimes.gguf.file import TensorRecord, file_type_of
from bitplan.runtimes.gguf.metadata import expected_kl, measured_kl, name_of_plan, plan_keys


def fields(path):
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


def test_a_plans_file_says_what_it_is(command, tiny, tmp_path, demo):
    plan = tmp_path / "mine" / "plan.json"
    plan.parent.mkdir()
    plan.write_text('{"default": {"wq": "q5_0"}}')
    scores, text = tmp_path / "perplexity.json", demo / "calibration.txt"
    scores.write_text('{"kl_mean": 0.125}')
    given = ("--model", tiny, "--plan", plan, "--scores", scores, "--calibration", text, "--model-name", "tiny")
    for name in ("a", "b"):
        outputs = ("--output", tmp_path / f"{name}.gguf", "--report", tmp_path / f"{name}.json")
        command("export_gguf.py", *given, *outputs)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    held, info = fields(tmp_path / "a.gguf"), model_info(tiny)
    assert held["general.name"] == "tiny mine" and held["bitplan.plan"] == "mine"
    assert held["bitplan.avg_bits"] == pytest.approx(average_bits(uniform_plan(info, "q5_0"), info).avg_bits, rel=1e-6)
    assert held["bitplan.kl"] == 0.125 and held["bitplan.version"] == __version__
    assert held["bitplan.calibration_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()


def test_what_is_not_known_has_no_key(tiny):
    info = model_info(tiny)
    keys = plan_keys(uniform_plan(info, "q8_0"), info, "tiny", "mine")
    assert set(keys) == {"general.name", "bitplan.plan", "bitplan.version", "bitplan.avg_bits"}


@pytest.mark.parametrize(
    ("summary", "kl"),
    [
        ({}, None),
        ({"kld_predicted": 0.5, "stages": []}, 0.5),
        ({"kld_predicted": 0.5, "stages": [{"kept": False, "kl_before": 0.4, "kl_change": 0.1}]}, 0.5),
        ({"kld_predicted": 0.5, "stages": [{"kept": True, "kl_before": 0.4, "kl_change": -0.1}]}, 0.3),
    ],
)
def test_the_kl_that_a_search_expects_is_that_of_its_last_kept_step(summary, kl):
    assert expected_kl(summary) == pytest.approx(kl)


def test_scores_without_a_kl_are_refused(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"kl_mean": None}))
    with pytest.raises(UserError, match="has no kl_mean"):
        measured_kl(tmp_path / "s.json")


@pytest.mark.parametrize(("path", "name"), [("runs/mine/plan.json", "mine"), ("runs/best.json", "best")])
def test_a_plan_is_named_by_its_file_or_folder(path, name, tmp_path):
    assert name_of_plan(tmp_path / path) == name


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"Q5_K": (100, 68), "F16": (40, 80)}, "MOSTLY_F16"),
        ({"Q5_K": (100, 68), "F16": (20, 40)}, "MOSTLY_Q5_K_S"),
        ({"MXFP4": (100, 53)}, "MOSTLY_MXFP4_MOE"),
        ({"Q8_0": (100, 106)}, "MOSTLY_Q8_0"),
        ({"IQ4_XS": (100, 53)}, "MOSTLY_IQ4_XS"),
    ],
)
def test_the_file_type_is_that_of_most_bytes(tensors, kind):
    records = [TensorRecord(name, "", "", "", name, *sizes, "") for name, sizes in tensors.items()]
    assert file_type_of(records) is LlamaFileType[kind]
