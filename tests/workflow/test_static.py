"""The workflow before it runs: lint, layout, dry runs, wrong settings, pins."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SCRIPTS
from tests.workflow.conftest import snakemake, stub_text


def test_snakemake_finds_nothing_to_criticize():
    made = snakemake(ROOT, "--lint")
    assert made.returncode == 0, made.stderr


def test_the_rules_are_laid_out_by_snakefmt():
    made = subprocess.run(
        ["snakefmt", "--check", "Snakefile", "rules"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_a_dry_run_plans_every_step_for_every_plan(workflow):
    made = snakemake(workflow, "--dry-run", "--quiet", "rules")
    assert made.returncode == 0, made.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", snakemake(workflow, "--dry-run").stdout, re.M))
    assert (
        counts["plan_gguf"] == counts["bits"] == "7" and counts["baseline_gguf"] == "7" and counts["comparison"] == "1"
    )


@pytest.mark.parametrize(("shards", "jobs"), [(1, 0), (3, 3)])
def test_the_layers_are_shared_among_as_many_jobs_as_the_settings_say(workflow, shards, jobs):
    setting = f"sensitivity={{shards: {shards}, anchors: 2, palette: [q2_k, q3_k, q4_k, q5_k, q6_k, q8_0]}}"
    made = snakemake(workflow, "--dry-run", "-p", "results/demo/sensitivity.tsv", "--config", setting)
    assert made.returncode == 0, made.stdout
    assert made.stdout.count("rule sensitivity_shard:") == jobs
    assert [f"--shard {number}/3" in made.stdout for number in (1, 2, 3)] == [jobs == 3] * 3
    assert made.stdout.count("--anchors 2") == max(1, jobs) and "--report results/demo/agreement.json" in made.stdout


@pytest.mark.parametrize(
    "target", ["stats", "plans", "perplexity", "exports", "cards", "gguf", "speed", "report", "studies"]
)
def test_named_targets_exist(workflow, target):
    assert snakemake(workflow, "--dry-run", target).returncode == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "plans={x: {method: adaptive, taget_avg_bits: 4}}",
            'plans.x.taget_avg_bits: unknown key. Did you mean "target_avg_bits"?',
        ),
        ("evaluation={length: 1}", "evaluation.length: input should be greater than or equal to 2"),
        ("plans={x: {method: genetics}}", "plans.x"),
    ],
)
def test_a_wrong_setting_stops_the_run_with_one_line_and_no_traceback(workflow, setting, message):
    made = snakemake(workflow, "--dry-run", "--config", setting)
    assert made.returncode == 1 and message in made.stdout and "Traceback" not in made.stdout + made.stderr


def test_a_missing_model_is_named(workflow):
    made = snakemake(
        workflow,
        "--dry-run",
        "--config",
        "models={m: {path: nowhere, calibration: demo/calibration.txt, evaluation: demo/evaluation.txt}}",
    )
    assert made.returncode == 1 and "[INPUT-MISSING] models.m.path: nowhere" in made.stdout + made.stderr


def test_the_demo_runs_in_another_directory_and_finds_its_model_and_texts(workflow, tmp_path):
    made = snakemake(workflow, "--dry-run", "-p", "--directory", str(tmp_path))
    assert made.returncode == 0, made.stderr
    commands = [line for line in made.stdout.splitlines() if "layer_stats.py" in line and "--save-text" in line]
    assert len(commands) == 1 and "a folder/demo/calibration.txt" in commands[0]


def test_a_config_and_texts_in_another_directory_come_before_those_of_the_workflow(workflow, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "calibration.txt").write_text(stub_text("mine"))
    (tmp_path / "config.yaml").write_text(
        (workflow / "config.yaml").read_text().replace("sequences: 16", "sequences: 9")
    )
    made = snakemake(workflow, "--dry-run", "-p", "--directory", str(tmp_path))
    assert made.returncode == 0, made.stderr
    command = next(line for line in made.stdout.splitlines() if "layer_stats.py" in line and "--save-text" in line)
    assert "--calibration demo/calibration.txt" in command and "--sequences 9" in command


def test_one_text_for_both_is_split_and_said(workflow, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "link.txt").symlink_to(workflow / "demo" / "calibration.txt")
    setting = "models={demo: {evaluation: demo/link.txt}}"
    made = snakemake(workflow, "--dry-run", "-p", "--directory", str(tmp_path), "--config", setting)
    assert made.returncode == 0, made.stdout
    references = [line for line in made.stdout.splitlines() if "teacher.py" in line and "--text" in line]
    assert sorted(int(re.search(r"--skip-tokens (\d+)", line)[1]) for line in references) == [8192, 16384]
    assert "calibration and evaluation are one text" in made.stdout + made.stderr


def test_one_text_of_which_all_is_used_stops_the_run_with_one_line(workflow, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "models: {demo: {evaluation: demo/calibration.txt}}\nvalidation: {sequences: null}\n"
    )
    made = snakemake(workflow, "--dry-run", "--configfile", str(tmp_path / "own.yaml"))
    assert made.returncode == 1 and "SETTINGS-NOTHING-HELD-OUT" in made.stdout
    assert "Traceback" not in made.stdout + made.stderr


def test_two_texts_are_not_skipped_in(workflow):
    made = snakemake(workflow, "--dry-run", "-p", "results/demo/evaluation.safetensors")
    assert "teacher.py" in made.stdout and "--skip-tokens" not in made.stdout and "are one text" not in made.stderr


def test_all_of_a_text_is_asked_for_in_words(workflow, tmp_path):
    (tmp_path / "own.yaml").write_text("evaluation: {sequences: null}\n")
    target = "results/demo/evaluation.safetensors"
    made = snakemake(workflow, "--dry-run", "-p", "--configfile", str(tmp_path / "own.yaml"), "--", target)
    assert "--sequences all" in made.stdout


def test_environments_pin_what_the_lock_file_pins():
    from set_up import locked

    lock = dict(pin.split("==") for pin in locked(ROOT / "requirements.lock"))
    for path in (ROOT / "envs").glob("*.yaml"):
        pins = re.findall(r"^ +- ([\w-]+)==(\S+)$", path.read_text(), re.M)
        assert pins and {name: lock[name] for name, _ in pins} == dict(pins), path.name


# Names under which packages are imported, where these are not the packages' own.
PACKAGES = {"llama_cpp": "llama-cpp-python", "vl_convert": "vl-convert-python", "yaml": "PyYAML"}
# Comes with llama.cpp's converter, which is no package.
CONVERTER = {"conversion"}
CALLS = sorted(
    {
        (environment, command)
        for path in (ROOT / "rules").glob("*.smk")
        for environment, command in re.findall(
            r"envs/(\w+)\.yaml\"(?:(?!\nrule |\n    rule ).|\n)*?script\(\"(\w+\.py)\"\)", path.read_text()
        )
    }
)


def third_party(command: str) -> set[str]:
    """The packages that a command and the local code behind it import, anywhere in it."""
    from bitplan.workflow.code_versions import files_behind

    return packages_of(files_behind(command, declarations=True))


def packages_of(files) -> set[str]:
    """The packages that some files of the library import, anywhere in them."""

    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    local = {path.stem for path in SCRIPTS.glob("*.py")} | {"bitplan"}
    found = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - local - CONVERTER
    return {PACKAGES.get(name, name) for name in found}


def test_the_commands_of_rules_are_found_with_their_environments():
    assert {command for _, command in CALLS} >= {"sensitivity.py", "report.py", "convert_gguf.py", "download_model.py"}


@pytest.mark.parametrize(("environment", "command"), CALLS)
def test_an_environment_names_every_package_that_its_commands_import(environment, command):
    named = set(re.findall(r"^ +- ([\w-]+)==", (ROOT / "envs" / f"{environment}.yaml").read_text(), re.M))
    plain = {name.lower().replace("_", "-") for name in named}
    assert {name for name in third_party(command) if name.lower().replace("_", "-") not in plain} == set()


def test_requirements_are_those_of_the_lock_file():
    from set_up import locked

    assert locked(ROOT / "requirements.txt") == locked(ROOT / "requirements.lock")


@pytest.mark.parametrize(
    ("lock", "known"), [("requirements.lock", "torch==2.13.0"), ("tests/runtimes.lock", "mlx==0.32.4")]
)
def test_a_lock_file_pins_everything_and_names_no_place(lock, known):
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines)
    assert known in lines


def test_what_only_tests_use_is_not_installed_with_the_project():
    from set_up import locked

    names = [
        {pin.split("==")[0] for pin in locked(ROOT / lock)} for lock in ("requirements.lock", "tests/runtimes.lock")
    ]
    assert not names[0] & names[1]


def test_set_up_names_what_the_machine_lacks(monkeypatch):
    import set_up

    monkeypatch.setattr(set_up.shutil, "which", lambda name: None)
    assert ["install g++" in set_up.problems()[0], "install cmake" in set_up.problems()[1]] == [True, True]


def test_set_up_puts_the_program_into_the_environment(tmp_path):
    import set_up

    place = tmp_path / "a folder"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    set_up.write_program(place)
    made = subprocess.run([place / "bin" / "bitplan", "--help"], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("usage: bitplan COMMAND")


RULES = {
    name: body
    for path in (ROOT / "rules").glob("*.smk")
    for name, body in re.findall(r"^(?:    )?rule(?: (\w+))?:\n((?:    .*\n|\n)+)", path.read_text(), re.M)
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_cheap_and_local_or_says_its_threads_memory_and_time(name):
    said = ["threads:" in RULES[name], "mem_mb=" in RULES[name], "runtime=" in RULES[name]]
    assert said == [False] * 3 if "localrule: True" in RULES[name] else all(said)


def test_every_jobs_memory_is_a_function_of_the_attempt():
    said = {name: re.findall(r"mem_mb=(.+),", body) for name, body in RULES.items() if "mem_mb=" in body}
    assert all(
        re.fullmatch(r"on_attempt\(resources\.\w+\)", memory) for memories in said.values() for memory in memories
    ), said


def resources_of(body: str) -> list[str]:
    return re.findall(r"resources:\n((?: +\w+=.*\n)+)", body)


def test_every_jobs_time_grows_with_the_model_and_the_attempt():
    said = {name: re.findall(r"runtime=(.+),", asked) for name, body in RULES.items() for asked in resources_of(body)}
    known = r"time_limit\(\d+, \d+\)|on_attempt\(resources\.method_time\)"
    assert all(re.fullmatch(known, limit) for limits in said.values() for limit in limits), said


def test_the_slurm_profile_belongs_to_no_site_and_says_why_each_entry_is_there():
    text = (ROOT / "profiles" / "slurm" / "profile.yaml").read_text()
    settings = [line for line in text.splitlines() if re.match(r"[a-z-]+:", line)]
    assert all("#" in line or line in ("set-threads:", "executor: slurm") for line in settings)
    assert not re.search(r"partition[=:]|account[=:]|qos[=:]|constraint[=:]", text)


def test_the_slurm_profile_keeps_the_switches_of_the_default_one():
    import yaml

    default, slurm = (
        yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text()) for name in ("default", "slurm")
    )
    assert {key: slurm.get(key) for key in default if key != "resources"} == {
        key: value for key, value in default.items() if key != "resources"
    }
