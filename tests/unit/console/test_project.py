"""The project that the flags of `bitplan quantize`, `plan`, `init` and `compare` describe."""

import argparse
import re
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import yaml

from bitplan.config.completion import completed
from bitplan.console import compare, init, plan, quantize, snakemake_run
from bitplan.console.estimate import estimate_of
from bitplan.console.main import main
from bitplan.console.project import configuration, project_of
from bitplan.console.typed_words import in_typed_words, typed_words
from bitplan.console.wishes import model_settings, prepared_project, wish_of
from bitplan.core.errors import Problem, UserError
from bitplan.core.places import workflow_folder
from bitplan.runtimes.registry import runtime_named
from tests.families import TEXT

HUB_ID = "organization/model-1b"


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(command, *words: object) -> argparse.Namespace:
    return command.build_parser().parse_args([str(word) for word in words])


def quantize_flags(*words: object) -> argparse.Namespace:
    return flags(quantize, HUB_ID, "--text", TEXT, "-o", "small.gguf", *words)


def test_a_model_of_the_hub_keeps_its_id_and_revision(in_a_folder):
    wanted = {"path": HUB_ID, "calibration": str(TEXT), "evaluation": str(TEXT)}
    assert model_settings(quantize_flags()) == wanted
    assert model_settings(quantize_flags("--revision", "v2")) == wanted | {"revision": "v2"}


def test_a_folder_becomes_an_absolute_path(in_a_folder):
    (in_a_folder / "model").mkdir()
    settings = model_settings(flags(plan, "model", "--text", TEXT, "-o", "plan.json"))
    assert settings["path"] == str(in_a_folder / "model")


def test_two_folders_of_the_same_name_have_two_projects(in_a_folder):
    for place in ("a", "b"):
        (in_a_folder / place / "model").mkdir(parents=True)
    first, second = (project_of(f"{place}/model", in_a_folder) for place in ("a", "b"))
    assert first.folder != second.folder and first.name == second.name == "model"


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], {"same_size_as": "q4_k_m"}),
        (["--same-size-as", "q3_k_s"], {"same_size_as": "q3_k_s"}),
        (["--same-size-as", "Q3-K-S"], {"same_size_as": "q3_k_s"}),
        (["--bits", "4.5"], {"target_avg_bits": 4.5}),
        (["--max-size", "0.5 gb"], {"max_size": "0.5GB"}),
        (["--bits", "4.5", "--runtime", "compressed-tensors"], {"target_avg_bits": 4.5, "palette": "runtime"}),
    ],
)
def test_the_flags_of_a_size_become_the_settings_of_one_plan(words, size, in_a_folder):
    args = quantize_flags(*words)
    project = project_of(HUB_ID, in_a_folder)
    made = configuration(project, model_settings(args), wish_of(args))
    assert list(made["models"]) == ["model-1b"]
    assert list(made["plans"].values()) == [{"method": "optimal", "rounding": "feedback", **size}]


def test_quantize_compares_with_the_recipe_with_importance_matrix(in_a_folder):
    args, project = quantize_flags("--same-size-as", "q3_k_s"), project_of(HUB_ID, in_a_folder)
    wish = wish_of(args)
    assert project.result("baselines", "q3_k_s_imatrix", "perplexity.json") in quantize.targets_of(project, wish)
    config = completed(configuration(project, model_settings(args), wish), workflow_folder())
    assert "q3_k_s_imatrix" in config["baselines"]


def test_quantize_with_average_bits_needs_no_recipe(in_a_folder):
    args, project = quantize_flags("--bits", "4.5"), project_of(HUB_ID, in_a_folder)
    targets = quantize.targets_of(project, wish_of(args))
    assert [path.name for path in targets] == [
        "estimate.txt",
        "model.gguf",
        "perplexity.json",
        "README.md",
        "bits.json",
    ]
    assert all(project.result("plans", "optimal-4.5bit") in path.parents for path in targets[1:])


def test_a_plan_alone_is_rounded_to_nearest_as_no_weights_are_written(in_a_folder):
    assert wish_of(flags(plan, HUB_ID, "--text", TEXT, "-o", "plan.json")).rounding == "nearest"


def test_init_writes_a_configuration_that_is_valid_and_runs_nothing(in_a_folder, capsys):
    init.main(flags(init, HUB_ID, "--text", TEXT, "--rounding", "nearest", "-o", "project"))
    assert sorted(path.name for path in (in_a_folder / "project").iterdir()) == ["config.yaml"]
    written = yaml.safe_load((in_a_folder / "project" / "config.yaml").read_text())
    assert written["models"]["model-1b"]["path"] == HUB_ID
    assert written["plans"] == {
        "optimal-q4-k-m": {"method": "optimal", "rounding": "nearest", "same_size_as": "q4_k_m"}
    }
    assert "bitplan compare project" in capsys.readouterr().out


@pytest.mark.parametrize("command", [quantize, plan, init])
def test_a_model_that_is_nowhere_is_refused_before_the_workflow_starts(command, in_a_folder):
    named = "models\\.nowhere\\.path" if command is init else "the model"
    with pytest.raises(UserError, match=rf"INPUT-MISSING\] {named}: nowhere: does not exist"):
        command.main(flags(command, "nowhere", "--text", TEXT, "-o", "made.gguf"))
    assert not (in_a_folder / "made.gguf").exists()


def test_another_runtime_is_that_of_the_model_and_its_plans_have_names_of_their_own(in_a_folder):
    args, project = (
        quantize_flags("--max-size", "1GB", "--runtime", "compressed-tensors"),
        project_of(HUB_ID, in_a_folder),
    )
    made = configuration(project, model_settings(args), wish_of(args))
    assert made["models"]["model-1b"]["runtimes"] == ["compressed_tensors"]
    assert list(made["plans"]) == ["optimal-1GB-compressed-tensors"]
    names = [path.relative_to(project.result()).as_posix() for path in quantize.targets_of(project, wish_of(args))]
    folder = "plans/optimal-1GB-compressed-tensors/compressed_tensors"
    assert {f"{folder}/model", f"{folder}/perplexity.json", f"{folder}/README.md"} <= set(names)


def test_scores_of_a_runtime_that_cannot_run_here_are_the_simulated_ones(in_a_folder, monkeypatch):
    monkeypatch.setattr(quantize, "runtime_named", lambda name: replace(runtime_named(name), score=None))
    args, project = quantize_flags("--runtime", "mlx"), project_of(HUB_ID, in_a_folder)
    assert quantize.scores_of(project, wish_of(args)).parent.name == "optimal-q4-k-m-mlx"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-size", "4"], "expected e.g. 4GB"),
        (["--max-size", "4GB", "--bits", "4"], "not allowed with"),
        (["--runtime", "mlxx"], "Did you mean 'mlx'?"),
    ],
)
def test_a_size_or_runtime_that_is_none_is_refused_with_what_is_expected(words, told, in_a_folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        quantize_flags(*words)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runtime", "name", "code"),
    [("gguf", "a.safetensors", "OUTPUT-NAME"), ("gguf", "full", "OUTPUT-UNWRITABLE"), ("mlx", "full", "OUTPUT-EXISTS")],
)
def test_an_output_that_is_not_one_of_the_runtime_is_refused_before_any_work(runtime, name, code, in_a_folder):
    (in_a_folder / "full" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match=code):
        quantize.main(flags(quantize, HUB_ID, "--text", TEXT, "--runtime", runtime, "-o", name))
    assert not (in_a_folder / ".bitplan").exists()


def test_a_recipe_that_is_none_is_refused_with_the_nearest_one(in_a_folder, capsys):
    with pytest.raises(SystemExit):
        quantize_flags("--same-size-as", "q4km")
    assert "Did you mean 'q4_k_m'?" in capsys.readouterr().err


def test_a_command_that_is_none_is_refused_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["comparee"])
    assert "Did you mean 'compare'?" in capsys.readouterr().err


def test_an_estimate_of_a_model_that_is_nowhere_says_that_it_does_not_exist():
    with pytest.raises(UserError, match="INPUT-MISSING.*/nowhere: does not exist"):
        estimate_of("/nowhere")


@pytest.mark.parametrize("command", [quantize, plan])
def test_what_a_local_model_cannot_give_is_said_of_the_flags_before_the_workflow_starts(command, tiny, in_a_folder):
    (in_a_folder / "short.txt").write_text(TEXT.read_text()[:40_000])
    words = ("--text", in_a_folder / "short.txt", "--bits", 1, "--work", in_a_folder / "work", "-o", "made.gguf")
    with pytest.raises(UserError) as raised:
        command.main(flags(command, tiny, *words))
    bits, text = raised.value.problems
    assert (bits.code, bits.where) == ("SEARCH-TARGET-OUT-OF-REACH", "--bits") and "The palette allows " in bits.hint
    assert (text.code, text.where) == ("TEXT-TOO-SHORT", f"--text {in_a_folder / 'short.txt'}")
    assert re.search(r"set calibration\.sequences: \d+, .*bitplan init", text.hint)
    assert not (in_a_folder / "work").exists()


def test_a_text_of_fewer_bytes_than_tokens_are_needed_is_refused_for_a_model_of_the_hub_too(in_a_folder):
    (in_a_folder / "short.txt").write_text("a few words")
    with pytest.raises(UserError, match=r"TEXT-TOO-SHORT\] --text .*short.txt: has at most 12 tokens"):
        quantize.main(flags(quantize, HUB_ID, "--text", in_a_folder / "short.txt", "-o", "small.gguf"))


def test_compare_says_what_the_models_of_a_configuration_cannot_give(tiny, in_a_folder):
    model = {"path": str(tiny), "calibration": "text.txt", "evaluation": "text.txt"}
    (in_a_folder / "project").mkdir()
    (in_a_folder / "project" / "text.txt").write_text(TEXT.read_text()[:40_000])
    content = {"models": {"mine": model}, "plans": {"low": {"method": "optimal", "target_avg_bits": 1}}}
    (in_a_folder / "project" / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"plans\.low\.target_avg_bits.*models\.mine\.calibration: text\.txt: has"):
        compare.main(flags(compare, "project"))


def test_compare_of_a_folder_without_a_configuration_is_refused(in_a_folder):
    with pytest.raises(UserError, match="INPUT-MISSING.*config.yaml.*bitplan init"):
        compare.main(flags(compare, in_a_folder))


@pytest.mark.parametrize(("status", "raised"), [(0, False), (1, True)])
def test_a_quiet_run_prints_what_snakemake_says_without_its_own_noise(status, raised, in_a_folder, monkeypatch, capfd):
    said = "Using workflow specific profile profiles/default for setting default command line arguments.\nsomething is odd\n"
    program = f"import sys; print('a step'); sys.stderr.write({said!r}); sys.exit({status})"
    monkeypatch.setattr(snakemake_run, "command", lambda *_: [sys.executable, "-c", program])
    with pytest.raises(UserError, match="WORKFLOW-FAILED") if raised else nullcontext():
        snakemake_run.run_workflow(project_of(HUB_ID, in_a_folder), [], 1, ["--quiet"])
    assert capfd.readouterr() == ("", "something is odd\n")


@pytest.mark.parametrize(("said", "told"), [("3 steps\n", "about 44 s\n3 steps\n"), ("Nothing to be done\n",) * 2])
def test_what_a_run_takes_is_said_where_there_is_something_to_do(said, told, in_a_folder, monkeypatch, capfd):
    program = f"import sys; sys.stderr.write('Using profile x\\n' + {said!r})"
    monkeypatch.setattr(snakemake_run, "command", lambda *_: [sys.executable, "-c", program])
    snakemake_run.run_workflow(project_of(HUB_ID, in_a_folder), [], 1, [], "about 44 s")
    assert capfd.readouterr().err == told


def test_an_error_that_says_what_is_wrong_is_told_in_the_user_s_words_and_ends_the_run(in_a_folder, monkeypatch, capfd):
    said = "error [SEARCH-TARGET-OUT-OF-REACH] --target-avg-bits: no formats reach 1 (log: logs/model-1b/search.log)\n"
    program = f"import sys; sys.stderr.write({said!r}); sys.exit(1)"
    monkeypatch.setattr(snakemake_run, "command", lambda *_: [sys.executable, "-c", program])
    args, project = quantize_flags("--bits", "1"), project_of(HUB_ID, in_a_folder / "work")
    project = replace(project, typed=typed_words(args, project.name, "optimal-1bit"))
    with pytest.raises(SystemExit) as ended:
        snakemake_run.run_workflow(project, [], 1)
    told = said.replace("--target-avg-bits", "--bits").replace("logs/", f"work/{project.folder.name}/logs/")
    assert (ended.value.code, capfd.readouterr().err) == (2, told)


def test_a_text_that_serves_twice_is_told_once_by_the_flag_that_named_it(in_a_folder):
    typed = typed_words(quantize_flags(), "model-1b", "optimal-q4-k-m")
    keys = ("calibration", "evaluation")
    with pytest.raises(UserError) as raised, in_typed_words(typed):
        raise UserError(Problem("INPUT-MISSING", f"models.model-1b.{key}", "is a folder") for key in keys)
    assert [str(problem) for problem in raised.value.problems] == ["[INPUT-MISSING] --text: is a folder"]


def test_git_takes_no_notice_of_a_work_folder(in_a_folder):
    project, _ = prepared_project(quantize_flags())
    assert (project.folder / ".gitignore").read_text() == "*\n"
    assert not (in_a_folder / ".gitignore").exists()


def test_compare_tells_where_a_configuration_is_no_yaml(in_a_folder):
    (in_a_folder / "config.yaml").write_text("models: [1\nplans: 2\n")
    with pytest.raises(UserError, match=r"SETTINGS-NOT-YAML.*line 2"):
        compare.main(flags(compare, in_a_folder))
