"""Texts and their windows: skipped tokens, how windows begin, which text a model needs, and overflows."""

import codecs
import json
import logging
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitplan.cli.bundled_text import is_bundled
from bitplan.config.paths import same_text, tokens_seen
from bitplan.config.settings import parse_settings
from bitplan.core.errors import UserError
from bitplan.evaluate.scores import TokenScores, summarize
from bitplan.evaluate.whole_model import open_whole_model
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.devices import pick_dtype
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import uniform_plan
from bitplan.reference.opening import open_held_out_reference, open_reference, prepare_model
from bitplan.reference.reference import load_reference, make_reference, save_reference
from bitplan.reference.text import cut_text, load_tokenizer, read_text
from bitplan.statistics.activations import InputStatistics
from bitplan.statistics.importance import read_importance, write_importance
from bitplan.statistics.layer_stats import write_statistics
from tests.conftest import ROOT, SCRIPTS

TEXT = ROOT / "demo" / "calibration.txt"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The beginning of the bundled text: some thousand tokens."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(TEXT.read_text()[:30_000])
    return path


@pytest.fixture
def changed(tiny, tmp_path):
    """A function that copies the tiny model and changes its configuration and tensors."""

    def make(config=None, tensors=None):
        folder = tmp_path / "changed"
        shutil.copytree(tiny, folder)
        content = {**json.loads((folder / "config.json").read_text()), **(config or {})}
        (folder / "config.json").write_text(json.dumps(content))
        if tensors:
            weights = load_file(folder / "model.safetensors")
            tensors(weights)
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


# ------------------------------------------------------------------------------------------------- tokens seen and held out


def settings_of(**windows):
    model = {"path": "m", "calibration": str(TEXT), "evaluation": str(TEXT)}
    return parse_settings({"models": {"m": model}, "plans": {"p": {"method": "random"}}, **windows})


@pytest.mark.parametrize("seed", range(12))
def test_calibration_selection_and_evaluation_of_one_text_share_no_token(seed, tiny, short):
    draw = random.Random(seed)
    sections = {
        name: {"length": draw.randint(2, 90), "sequences": draw.randint(1, 12)}
        for name in ("calibration", "validation", "evaluation")
    }
    settings, bos = settings_of(**sections), draw.choice(("never", "always"))
    skips = (0, settings.tokens_before_validation, tokens_seen(settings, "m"))
    cuts = [cut_text(tiny, short, *how.values(), skip, bos) for how, skip in zip(sections.values(), skips, strict=True)]
    ranges = [cut.source for cut in cuts]
    assert not any(one.overlaps(other) for i, one in enumerate(ranges) for other in ranges[:i])
    ids = load_tokenizer(tiny)(short.read_text(), add_special_tokens=False).input_ids
    for cut in cuts:
        own = cut.tokens[:, cut.bos != "none" :].flatten().tolist()
        assert own == ids[cut.source.start : cut.source.stop]


def test_long_calibration_windows_leave_the_validation_text_unseen(tiny, short):
    settings = settings_of(calibration={"length": 128, "sequences": 16}, validation={"length": 64, "sequences": 16})
    assert settings.tokens_before_validation == 2048
    assert cut_text(tiny, short, 64, 16, 2048, "never").source.start == 2048


@pytest.mark.parametrize("section", ["calibration", "validation"])
def test_one_text_of_which_all_is_used_is_refused_as_held_out(section):
    settings = settings_of(**{section: {"sequences": None}})
    with pytest.raises(UserError, match=rf"models.m.evaluation: is the calibration text too.*Set {section}.sequences"):
        tokens_seen(settings, "m")


def test_a_link_and_a_copy_are_the_same_text(tmp_path, short):
    copy, link, other = tmp_path / "copy.txt", tmp_path / "link.txt", tmp_path / "other.txt"
    shutil.copy(short, copy)
    link.symlink_to(short)
    other.write_text(short.read_text().swapcase())
    assert [same_text(str(short), str(path)) for path in (copy, link, other, tmp_path / "no")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_held_out_text_that_was_measured_on_is_taken_behind_it(tiny, short, tmp_path, caplog):
    model = prepare_model(tiny, "fp32", "cpu", 1)
    seen = open_reference(short, model, 16, 3)
    copy = shutil.copy(short, tmp_path / "copy.txt")
    with caplog.at_level(logging.INFO):
        reference = open_held_out_reference(tmp_path / "copy.txt", seen, model, 24, 2)
    assert (reference.source.start, reference.source.stop) == (48, 96) and "its tokens from 48 on" in caplog.text
    assert open_held_out_reference(ROOT / "demo" / "evaluation.txt", seen, model, 16, 2).source.start == 0
    save_reference(tmp_path / "saved.safetensors", open_reference(short, model, 16, 2), model.info.fingerprint, copy)
    with pytest.raises(UserError, match="holds tokens that are measured on"):
        open_held_out_reference(tmp_path / "saved.safetensors", seen, model, 16, 2)


# --------------------------------------------------------------------------------------------------------- the text itself


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"Once upon a time")
    assert read_text(path) == "Once upon a time"


@pytest.mark.parametrize("name", ["UTF-16", "UTF-32"])
def test_text_in_another_encoding_is_named(name, tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("Once upon a time".encode(name))
    with pytest.raises(UserError, match=rf"is {name} text. Save it as UTF-8: iconv"):
        read_text(path)


def test_windows_begin_with_bos_where_the_family_needs_it_or_the_policy_says_so(changed, tiny, short):
    plain = cut_text(tiny, short, 16, 3)
    with_bos = cut_text(tiny, short, 16, 3, bos="always")
    assert plain.bos == "none" and with_bos.bos == "1"
    assert with_bos.tokens[:, 0].tolist() == [1, 1, 1] and with_bos.tokens.shape == (3, 16)
    assert with_bos.tokens[:, 1:].flatten().tolist() == plain.tokens.flatten()[:45].tolist()
    gemma = changed({"model_type": "gemma2"})
    assert cut_text(gemma, short, 16, 3).bos == "1" and cut_text(gemma, short, 16, 3, bos="never").bos == "none"


def test_a_bos_that_is_wanted_and_not_there_is_an_error(changed, short):
    folder = changed({"bos_token_id": None})
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": None}))
    with pytest.raises(UserError, match="has no BOS token. Give a tokenizer with one, or --bos never"):
        cut_text(folder, short, 16, 3, bos="always")


def test_a_score_and_a_saved_text_say_how_their_windows_begin(tiny, short, tmp_path):
    model = prepare_model(tiny, "fp32", "cpu", 1, "always")
    reference = make_reference(model.model, short, 16, 3, "fp32", 5)
    save_reference(tmp_path / "t.safetensors", reference, model.info.fingerprint, short)
    again = load_reference(tmp_path / "t.safetensors", model.checkpoint, model.info.fingerprint)
    assert again.bos == "1" and again.source == reference.source and reference.source.start == 5
    ones = torch.ones(2, 3)
    assert summarize(TokenScores(ones, ones, ones, ones, again.bos))["bos"] == "1"


def test_windows_beyond_the_positions_of_training_are_warned_of_once(tiny, short, caplog):
    model = prepare_model(tiny, "fp32", "cpu", 1)
    for _ in range(2):
        open_reference(short, model, 200, 2)
    assert [record.levelname for record in caplog.records if "max_position_embeddings" in record.message] == ["WARNING"]
    assert "windows of 200 tokens are longer than the 128 positions" in caplog.text and "--length 128" in caplog.text


def test_tokens_behind_the_embedding_are_named_wherever_they_are_fed(tiny):
    checkpoint = Checkpoint.open(tiny)
    model, info = open_model(checkpoint), describe(checkpoint)
    behind = torch.tensor([[5, 2048, 2050, 7]])
    with pytest.raises(UserError, match="has 2048 rows, and the tokenizer gives token 2050 and 1 others behind"):
        model.run(behind)
    with open_whole_model(model, info, QuantizedWeights()).under(uniform_plan(info, "bf16")) as module:
        with pytest.raises(UserError, match="2048 rows.*take its added tokens out"):
            module(behind)
        assert module(behind.clamp(max=2047)).logits.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ no text given

COMMANDS = {
    "layer_stats.py": "--calibration",
    "sensitivity.py": "--calibration",
    "optimal_search.py": "--calibration",
    "adaptive_quantization_search.py": "--calibration",
    "mixed_precision_ptq.py": "--calibration",
    "example_adaptive_search.py": "--calibration",
    "perplexity.py": "--text",
    "compare_formats.py": "--text",
    "test_mixed_precision.py": "--text",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_other_than_the_bundled_one_needs_its_text_at_once(name, command, tmp_path):
    # A model of the hub: the missing text is reported before any download.
    flags = ["--model", "somebody/a-model"]
    for flag in ("--output", "--output-config", "--output-plan"):
        if f'"{flag}"' in (SCRIPTS / name).read_text():
            flags += [flag, tmp_path / flag.strip("-")]
    if name == "optimal_search.py":
        flags += ["--target-avg-bits", 6]
    if name == "test_mixed_precision.py":
        (tmp_path / "c.json").write_text("{}")
        flags += ["--config", tmp_path / "c.json"]
    result = command(name, *flags, ok=False)
    assert result.returncode == 2 and f"error: {COMMANDS[name]}: is missing" in result.stderr, result.stderr


def test_the_bundled_model_is_known_by_its_folder_and_by_its_description(demo, tiny, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"path": str(demo / "model")}))
    (tmp_path / "link").symlink_to(demo / "model")
    assert all(map(is_bundled, (None, demo / "model", tmp_path / "model.json", tmp_path / "link")))
    assert not is_bundled(tiny)


# ------------------------------------------------------------------------------------------------------------ not finite


def overflowing(weights):
    weights["model.layers.1.mlp.down_proj.weight"].fill_(60_000.0)
    weights["model.layers.1.mlp.up_proj.weight"].fill_(100.0)


def test_a_walk_names_the_first_block_that_overflows_and_the_way_out(changed, short):
    model = prepare_model(changed(tensors=overflowing), "fp16", "cpu", 1)
    with pytest.raises(UserError, match="block 1 overflows fp16: its output is not finite. Use --dtype bf16 or fp32"):
        open_reference(short, model, 16, 2)


def test_statistics_of_a_model_that_overflows_are_not_written(changed, command, short, tmp_path):
    flags = (
        "--dtype",
        "fp16",
        "--length",
        16,
        "--sequences",
        2,
        "--calibration",
        short,
        "--output",
        tmp_path / "s.tsv",
    )
    result = command("layer_stats.py", "--model", changed(tensors=overflowing), *flags, ok=False)
    assert result.returncode == 2 and "block 1 overflows fp16" in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.glob("s.*"))


def test_statistics_that_are_not_finite_are_refused_before_anything_is_written(tmp_path):
    broken = InputStatistics(1, torch.ones(4), torch.full((4,), torch.inf), torch.ones(4))
    with pytest.raises(UserError, match="a.layer: has inputs whose statistics are not finite"):
        write_statistics(tmp_path / "s.tsv", tmp_path / "s.safetensors", [], {"a.layer": broken})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_an_importance_matrix_that_is_not_finite_is_refused(value, tiny, tmp_path):
    layers = describe(Checkpoint.open(tiny)).quantizable
    columns = {layer.name: torch.ones(layer.shape[1]) for layer in layers}
    columns[layers[2].name][3] = value
    write_importance(tmp_path / "i.safetensors", columns)
    with pytest.raises(UserError, match=f"{layers[2].name} that are no finite mean squares"):
        read_importance(tmp_path / "i.safetensors", layers)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error(value):
    ones = torch.ones(2, 3)
    with pytest.raises(UserError, match="are not finite .KL"):
        summarize(TokenScores(ones, ones, torch.full((2, 3), value), ones))


def test_auto_computes_in_bf16_only_where_the_processor_does(monkeypatch):
    for can, chosen in (({"amx_bf16": True}, "bf16"), ({"avx512_bf16": False}, "fp32"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert pick_dtype("auto", torch.device("cpu")) == chosen and pick_dtype("fp16", torch.device("cpu")) == "fp16"
