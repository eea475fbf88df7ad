"""What settings ask of a model that it cannot give: said before anything is run, with keys, ranges and numbers that do fit."""

import re
import shutil
from pathlib import Path

import pytest

from bitplan.config.completion import completed
from bitplan.config.settings import Settings, parse_settings
from bitplan.core.errors import Problem, UserError
from bitplan.core.files import write_json
from bitplan.core.places import workflow_folder
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe, outline
from bitplan.reference.text import load_tokenizer
from bitplan.runtimes.gguf.architectures import converter_table, known_architectures, why_unsupported
from bitplan.workflow.model_checks import check_against_model, check_described, check_tasks
from tests.conftest import ROOT

TEXT = ROOT / "demo" / "calibration.txt"
OTHER = ROOT / "demo" / "evaluation.txt"
FEW = {name: {"length": 16, "sequences": 4} for name in ("calibration", "validation", "evaluation")}
OPTIMAL = {"method": "optimal", "target_avg_bits": 16}


def settings_of(tiny: Path, plans: dict, text: Path = TEXT, held_out: Path = OTHER, **more: object) -> Settings:
    model = {"path": str(tiny), "calibration": str(text), "evaluation": str(held_out)}
    config = {"models": {"mine": model}, "plans": plans, **FEW, **more}
    return parse_settings(completed(config, workflow_folder()))


def problems(settings: Settings, path: Path) -> list[Problem]:
    try:
        check_against_model(settings, "mine", path)
    except UserError as error:
        return list(error.problems)
    return []


@pytest.fixture(scope="module")
def described(tiny, tmp_path_factory) -> Path:
    """The tiny model's model.json."""
    path = tmp_path_factory.mktemp("results") / "mine" / "model.json"
    path.parent.mkdir()
    write_json(path, describe(Checkpoint.open(tiny)).to_json())
    return path


@pytest.fixture
def text_of(tmp_path):
    """A function that writes a text of the first characters of the bundled one."""

    def written(characters: int, name: str = "short.txt") -> Path:
        (tmp_path / name).write_text(TEXT.read_text("utf-8")[:characters], "utf-8")
        return tmp_path / name

    return written


# ----------------------------------------------------------------------------------------------------------------- plans

LOW = {
    "optimal": {"method": "optimal", "target_avg_bits": 1},
    "genetic": {"method": "genetic", "target_avg_bits": 1, "palette": ["q4_k", "int4_g64"]},
    "adaptive": {"method": "adaptive", "target_avg_bits": 1, "check": {"on_miss": "fail"}},
}


@pytest.mark.parametrize("plan", LOW.values(), ids=LOW)
def test_a_target_that_no_choice_reaches_is_refused_with_the_range_whose_ends_are_not(plan, tiny, described):
    [problem] = problems(settings_of(tiny, {"p": plan}), described)
    assert problem.code == "SEARCH-TARGET-OUT-OF-REACH" and problem.where == "plans.p.target_avg_bits"
    low, high = re.search(r"allows? ([\d.]+) to ([\d.]+)", problem.hint).groups()
    for target, refused in ((low, 0), (high, 0), (float(low) - 2e-4, 1)):
        assert len(problems(settings_of(tiny, {"p": {**plan, "target_avg_bits": target}}), described)) == refused


def test_what_runtimes_store_counts_where_sizes_are_stored(tiny, described):
    held = {"palette": ["int4_g32", "int8_g32"], "sizes": "stored", "groups": "fusion"}
    plans = {"p": {"method": "optimal", "target_avg_bits": 1, **held}}
    model = settings_of(tiny, plans).models["mine"]
    found = {}
    for runtimes in (["compressed_tensors"], ["mlx"], ["gguf"]):
        settings = settings_of(tiny, plans)
        of_runtimes = {"mine": model.model_copy(update={"runtimes": runtimes})}
        [problem] = problems(settings.model_copy(update={"models": of_runtimes}), described)
        found[runtimes[0]] = float(re.search(r"allows ([\d.]+)", problem.hint)[1])
    # MLX stores a bias beside each scale, and GGUF int4 in 4.5 bits; neither stores embeddings in fewer than 16 as the plan has them.
    assert found["compressed_tensors"] < found["mlx"]


REFUSED = {
    "groups that do not divide rows": ({"method": "genetic"}, "mlx", 2),
    "a format that is none of the runtime's": ({"method": "adaptive", "formats": ["q4_k", "q8_0"]}, "mlx", 14),
    "formats of which one alone is": ({"method": "adaptive", "formats": ["q4_k", "mxfp8"]}, "mlx", 0),
    "blocks of a random plan": ({"method": "random"}, "auto_round", 14),
    "widths of channels": ({"method": "sparsegpt"}, "compressed_tensors", 14),
    "widths of channels in a file that comes near": ({"method": "sparsegpt"}, "gguf", 0),
    "weights that are pruned only": ({"method": "sparsegpt", "target_avg_bits": 16}, "compressed_tensors", 0),
    "a choice that the search makes among what is held": (OPTIMAL | {"palette": ["int4_g64", "int8_g64"]}, "mlx", 0),
}
NONE_HELD = OPTIMAL | {"palette": ["int4_g128", "int8_g128"]}


@pytest.mark.parametrize(("plan", "runtime", "layers"), REFUSED.values(), ids=REFUSED)
def test_layers_that_a_runtime_refuses_in_every_format_of_a_plan_are_said(plan, runtime, layers, tiny, described):
    settings = settings_of(tiny, {"p": plan}, sensitivity={"group_size": 64})
    held = {"mine": settings.models["mine"].model_copy(update={"runtimes": [runtime]})}
    found = problems(settings.model_copy(update={"models": held}), described)
    assert [(each.code, each.where) for each in found] == [("RUNTIME-REFUSED", "plans.p")] * bool(layers)
    assert not layers or f"cannot store {layers} of 14 layers" in found[0].what


@pytest.mark.parametrize("size", [{"target_avg_bits": 16}, {"target_avg_bits": None, "same_size_as": "q4_k_m"}])
def test_a_palette_of_which_runtimes_store_nothing_is_refused(size, tiny, described):
    settings = settings_of(tiny, {"p": NONE_HELD | size})
    held = {"mine": settings.models["mine"].model_copy(update={"runtimes": ["mlx"]})}
    [found] = problems(settings.model_copy(update={"models": held}), described)
    assert (found.code, found.where) == ("RUNTIME-REFUSED", "plans.p.palette")


def test_an_adaptive_plan_that_only_warns_may_miss_its_target(tiny, described):
    assert problems(settings_of(tiny, {"p": {"method": "adaptive", "target_avg_bits": 1}}), described) == []


def test_widths_of_layers_that_the_model_lacks_and_more_parts_than_blocks_are_refused(tiny, described):
    plan = {"method": "sparsegpt", "target_avg_bits": [3, 4, 5], "layer_bits": {"*.mlp.dwn_proj": 3}}
    found = problems(settings_of(tiny, {"p": plan}), described)
    assert [(problem.code, problem.where) for problem in found] == [
        ("SPARSEGPT-NO-MATCH", "plans.p.layer_bits: *.mlp.dwn_proj"),
        ("SPARSEGPT-TARGET", "plans.p.target_avg_bits"),
    ]


def test_an_outline_is_the_description_without_the_digest_of_the_weights(tiny):
    made, described = outline(Checkpoint.open(tiny)), describe(Checkpoint.open(tiny))
    assert made.to_json() == {**described.to_json(), "fingerprint": ""}


# -------------------------------------------------------------------------------------------------------- runtimes, tasks


def test_an_architecture_that_llama_cpps_converter_lacks_is_said_of_the_runtime(tiny, described, tmp_path):
    (tmp_path / "__init__.py").write_text('TEXT_MODEL_MAP: dict[str, str] = {"LlamaForCausalLM": "llama"}\n')
    table = tmp_path / "__init__.py"
    assert why_unsupported({"architectures": ["LlamaForCausalLM"]}, table) == ""
    assert (
        why_unsupported({"architectures": ["Vision"], "text_config": {"architectures": ["LlamaForCausalLM"]}}, table)
        == ""
    )
    assert "FooForCausalLM" in why_unsupported({"architectures": ["FooForCausalLM"]}, table)
    assert why_unsupported({"architectures": ["FooForCausalLM"]}, tmp_path / "absent.py") == ""
    assert problems(settings_of(tiny, {"p": OPTIMAL}), described) == []


def test_the_table_of_the_converter_that_is_installed_is_read():
    if not converter_table().is_file():
        pytest.skip("the converter is not here")
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM"} <= known_architectures(converter_table())


def test_tasks_that_lm_eval_does_not_know_are_said_at_their_keys(tiny, tmp_path):
    (tmp_path / "own").mkdir()
    folder = {"include_path": str(tmp_path / "own")}
    plan = {"method": "adaptive", "task": "demo_memory", **folder}
    check_tasks(settings_of(tiny, {"p": plan}, tasks={"names": ["demo_stories"], **folder}))
    (tmp_path / "own" / "broken.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"TASKS-NOT-YAML\] tasks\.names.*TASKS-NOT-YAML\] plans\.p\.task: "):
        check_tasks(settings_of(tiny, {"p": plan}, tasks={"names": ["demo_stories"], **folder}))


# ----------------------------------------------------------------------------------------------------------------- texts


def test_every_problem_of_plans_and_texts_is_said_at_once(tiny, text_of):
    settings = settings_of(tiny, {"low": LOW["optimal"]}, text_of(300), text_of(100, "shorter.txt"))
    assert [problem.where.partition(": ")[0] for problem in problems(settings, tiny)] == [
        "plans.low.target_avg_bits",
        "models.mine.calibration",
        "models.mine.evaluation",
    ]


@pytest.mark.parametrize("bos", ["never", "always"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_text_is_refused_if_it_has_a_token_less_than_its_windows_take(bos, shared, tiny, described, tmp_path):
    tokenizer = load_tokenizer(tiny)
    ids = tokenizer(TEXT.read_text("utf-8")[:3000], add_special_tokens=False).input_ids
    needed = (2 if shared else 1) * 64 + 4 * (16 - (bos == "always"))

    def found(tokens: int) -> list[Problem]:
        text = tmp_path / f"{tokens}.txt"
        text.write_text(tokenizer.decode(ids[:tokens]), "utf-8")
        assert len(tokenizer(text.read_text("utf-8"), add_special_tokens=False).input_ids) == tokens
        return problems(settings_of(tiny, {"p": OPTIMAL}, text, text if shared else OTHER, bos=bos), described)

    assert found(needed) == []
    [problem] = found(needed - 1)
    assert problem.code == "TEXT-TOO-SHORT" and f"has {needed - 1} tokens, and {needed} are needed" in problem.what


def test_the_numbers_of_windows_that_are_named_do_fit(tiny, described, text_of):
    text, windows = text_of(2_000), {name: {"length": 16, "sequences": 100} for name in FEW}
    [problem] = problems(settings_of(tiny, {"p": OPTIMAL}, text, text, **windows), described)
    fewer = {name: int(count) for name, count in re.findall(r"(\w+)\.sequences: (\d+)", problem.hint)}
    assert list(fewer) == ["calibration", "validation", "evaluation"] and fewer["calibration"] > 4
    fitting = {name: {"length": 16, "sequences": count} for name, count in fewer.items()}
    assert problems(settings_of(tiny, {"p": OPTIMAL}, text, text, **fitting), described) == []


def test_a_text_without_room_for_the_fewest_windows_has_no_numbers_that_fit(tiny, described, text_of):
    [problem] = problems(settings_of(tiny, {"p": OPTIMAL}, text_of(200)), described)
    assert problem.hint == "Give a longer text"


def test_a_text_that_is_not_utf8_is_said_beside_the_rest(tiny, described, tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve ".encode("latin-1") * 1000)
    found = problems(settings_of(tiny, {"low": LOW["optimal"]}, tmp_path / "latin.txt"), described)
    assert [problem.code for problem in found] == ["SEARCH-TARGET-OUT-OF-REACH", "TEXT-NOT-UTF8"]


# ------------------------------------------------------------------------------------------------------- a described model


@pytest.fixture
def results(described, tmp_path) -> Path:
    """Results in which the tiny model was described by an earlier run."""
    return shutil.copytree(described.parents[0].parent, tmp_path / "results")


def test_a_start_asks_it_of_models_that_are_described(tiny, results, text_of):
    settings = settings_of(tiny, {"low": LOW["optimal"]}, text_of(300))
    with pytest.raises(UserError, match=r"plans\.low\.target_avg_bits.*models\.mine\.calibration"):
        check_described(settings, results)
    check_described(settings_of(tiny, {"p": OPTIMAL}), results)


@pytest.mark.parametrize("kind", ["of another folder", "that cannot be read", "of a folder that is gone"])
def test_a_description_that_the_workflow_makes_anew_is_not_asked(kind, tiny, results, tmp_path):
    folder = tiny
    if kind == "that cannot be read":
        (results / "mine" / "model.json").write_text("stub")
    else:
        folder = tmp_path / "copy"
        shutil.copytree(tiny, folder)
    if kind == "of a folder that is gone":
        write_json(results / "mine" / "model.json", describe(Checkpoint.open(folder)).to_json())
        shutil.rmtree(folder)
    check_described(settings_of(folder, {"low": LOW["optimal"]}), results)
