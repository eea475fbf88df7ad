"""What reruns after a change: exactly what the change is behind. `rerun_tables.py` says what that is, and Snakemake what it would do."""

import ast
import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bitplan.config.settings import Settings
from bitplan.runtimes.registry import RUNTIMES, runtime_named
from bitplan.search.registry import METHODS
from bitplan.workflow.code_versions import content_hashes, files_behind
from tests.conftest import SCRIPTS
from tests.workflow.code_tables import COMMANDS, MODULES, RUNTIME_TASKS
from tests.workflow.conftest import Finished, snakemake, stub_text, summary
from tests.workflow.rerun_rules import changed, rerun, selected
from tests.workflow.rerun_tables import (
    BESIDE,
    CHANGES,
    CONFIG,
    FILES,
    MADE_ONCE,
    PLAN_SETTINGS,
    SETTINGS,
)

# A package's own file that holds a docstring alone has no content, so nothing depends on it.
MODULE_NAMES = sorted(
    path.relative_to(SCRIPTS / "bitplan").as_posix() for path in SCRIPTS.glob("bitplan/**/*.py") if content_hashes(path)
)
PLAN_CASES = [(method, key) for method, keys in PLAN_SETTINGS.items() for key in keys]
# The rule that rounds a plan, where it is a method's own.
ROUNDING = {"genetic": "rounded_genetic_plan"}
EDIT = "\nEDITED_BY_A_TEST = True\n"


@contextmanager
def written(path: Path, content: str | bytes) -> Iterator[None]:
    """Another content of a file, for a while."""
    before = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        yield
    finally:
        path.write_bytes(before)


def configured(everything: Finished, config: Mapping[str, Any]):
    return written(everything.folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))


def assert_reruns(everything: Finished, first: str) -> None:
    """Fail unless what Snakemake would run is what follows from the first jobs, all of which there are."""
    answer = everything.ask("pending")
    absent = [selector for selector in first.split() if not selected(answer["jobs"], selector)]
    assert not absent, "a selector of the table means no job"
    assert set(answer["pending"]) == rerun(answer["jobs"], first)


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the paths of a section's settings."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{above}{name}.")
        elif name in ("models", "studies") and not above:
            yield from leaves(field.annotation.__args__[1], f"{name}.")
        elif name not in ("plans", "method"):
            yield f"{above}{name}"


def test_a_finished_workflow_has_nothing_to_do(finished):
    assert {row["output_file"] for row in summary(finished) if row["plan"] != "no update"} == set()


def test_everything_is_finished_before_something_changes(everything):
    assert everything.ask("pending")["pending"] == []


def test_the_table_has_every_setting():
    assert set(SETTINGS) == set(leaves(Settings))
    assert {method: set(keys) for method, keys in PLAN_SETTINGS.items()} == {
        method: set(leaves(each.settings)) for method, each in METHODS.items()
    }


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_reruns_what_it_is_behind(everything, setting):
    path, value, first = SETTINGS[setting]
    config = changed(CONFIG, path, value)
    for other, needed in BESIDE.get(setting, {}).items():
        config = changed(config, other, needed)
    with configured(everything, config):
        assert_reruns(everything, first)


@pytest.mark.parametrize(("method", "key"), PLAN_CASES)
def test_a_setting_of_a_plan_reruns_that_plan_alone(everything, method, key):
    plan, value, *more = PLAN_SETTINGS[method][key]
    rules = {"check.on_miss": "bits", "check.tolerance": "bits", "rounding": ROUNDING.get(method, "rounded_plan")}
    rule = rules.get(key, f"{method}_plan")
    with configured(everything, changed(CONFIG, f"plans.{plan}.{key}", value)):
        assert_reruns(everything, " ".join([f"{rule}@{plan}", *more]))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_configuration_reruns_what_it_is_behind(everything, change):
    path, value, first = CHANGES[change]
    with configured(everything, changed(CONFIG, path, value)):
        assert_reruns(everything, first)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_read_reruns_what_reads_it(everything, name):
    with written(everything.folder / name, stub_text("another content").encode()):
        assert_reruns(everything, FILES[name])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_code_of_a_command_reruns_the_rules_that_call_it(everything, command):
    path = everything.folder / "scripts" / command
    with written(path, path.read_text() + EDIT):
        assert_reruns(everything, COMMANDS[command])


def test_the_table_has_every_command_of_the_workflow(everything):
    called = {f"{job.split('/')[1].split('@')[0]}" for job in everything.ask("pending")["jobs"]}
    assert called - MADE_ONCE == {rule for rules in COMMANDS.values() for rule in rules.split()}


@pytest.mark.parametrize("module", MODULE_NAMES)
def test_a_module_is_behind_the_rules_of_the_table_and_no_others(module):
    behind = {rule for command, rules in COMMANDS.items() for rule in rules.split() if is_behind(module, command, rule)}
    every = {rule for rules in COMMANDS.values() for rule in rules.split()}
    row = [
        rules for pattern, rules in MODULES.items() if fnmatchcase(module, pattern) and depth(pattern) == depth(module)
    ]
    assert row, "no row of the table has this module"
    assert behind == (every if row[-1] == "*" else set(row[-1].split()))


def depth(path: str) -> int:
    return path.count("/")


def is_behind(module: str, command: str, rule: str) -> bool:
    task, *runtimes = RUNTIME_TASKS.get(rule, ("",))
    of_runtime = [runtime_named(name).code[task] for name in runtimes]
    return SCRIPTS / "bitplan" / module in files_behind(command, *of_runtime)


@pytest.mark.parametrize("pattern", MODULES)
def test_every_row_of_the_table_has_a_module(pattern):
    assert any(fnmatchcase(module, pattern) for module in MODULE_NAMES)


def test_every_module_is_behind_some_command_but_for_what_the_rules_themselves_use():
    behind = {
        file.relative_to(SCRIPTS).as_posix()
        for path in SCRIPTS.glob("*.py")
        for file in files_behind(path.name, declarations=True)
    }
    every = {f"bitplan/{module}" for module in MODULE_NAMES}
    tasks = [
        module
        for runtime in map(runtime_named, RUNTIMES)
        for module in (*runtime.code.values(), RUNTIMES[runtime.name])
    ]
    behind |= {file.relative_to(SCRIPTS).as_posix() for file in files_behind("export_plan.py", *tasks)}
    of_the_rules = {module for module in every if module.startswith("bitplan/workflow/")} | {
        "bitplan/config/completion.py",
        "bitplan/config/paths.py",
        "bitplan/config/runtime_palettes.py",
        "bitplan/runtimes/registry.py",
        "bitplan/config/unique_keys.py",
        "bitplan/models/hub/cache.py",
    }
    of_the_program = {module for module in every if module.startswith("bitplan/console/")}
    assert every - behind - of_the_rules - of_the_program == set()


# One case of each kind of change: what Snakemake prints in a process of its own is what the tests above were told.
PROOFS = {
    "a setting": ("config.yaml", yaml.safe_dump(changed(CONFIG, "sensitivity.tokens", 1024))),
    "a plan's setting": ("config.yaml", yaml.safe_dump(changed(CONFIG, "plans.lot.check", {"on_miss": "fail"}))),
    "a text": ("demo/other.txt", stub_text("another content")),
    "a module": ("scripts/bitplan/sensitivity/kld.py", None),
    "nothing": ("demo/other.txt", stub_text("other")),
}


@pytest.mark.parametrize("change", PROOFS)
def test_snakemake_says_the_same_on_the_command_line(everything, change):
    name, content = PROOFS[change]
    path = everything.folder / name
    with written(path, path.read_text() + EDIT if content is None else content):
        told = {
            row["output_file"] for row in summary(everything.folder, "all", "studies") if row["plan"] != "no update"
        }
        assert told == set(everything.ask("pending")["outputs"])
        assert bool(told) == (change != "nothing")


def reordered(value: Any, names: bool = False) -> Any:
    """The same settings with the keys of each section the other way round; models, plans and studies keep their order, which reports show."""
    if not isinstance(value, dict):
        return value
    items = list(value.items()) if names else list(value.items())[::-1]
    return {key: reordered(inner, names=key in ("models", "plans", "studies", "vary", "also")) for key, inner in items}


COSMETICS = {
    "the order of keys": yaml.safe_dump(reordered(CONFIG), sort_keys=False),
    "braces and no indents": yaml.safe_dump(CONFIG, sort_keys=False, default_flow_style=True),
    "comments": "# mine\n\n" + yaml.safe_dump(CONFIG, sort_keys=False).replace("\n", " # why\n"),
}


@pytest.mark.parametrize("change", COSMETICS)
def test_how_the_settings_are_written_reruns_nothing(everything, change):
    with written(everything.folder / "config.yaml", COSMETICS[change]):
        assert_reruns(everything, "")


def test_the_order_of_plans_is_the_order_of_the_comparison(everything):
    config = copy.deepcopy(CONFIG)
    config["plans"] = dict(reversed(config["plans"].items()))
    with configured(everything, config):
        assert_reruns(everything, "comparison")


def test_comments_and_layout_of_the_whole_code_rerun_nothing(everything):
    paths = [*(everything.folder / "scripts").rglob("*.py")]
    before = {path: path.read_text() for path in paths}
    try:
        for path, text in before.items():
            path.write_text(f"# why\n\n\n{ast.unparse(ast.parse(text))}\n")
        assert_reruns(everything, "")
    finally:
        for path, text in before.items():
            path.write_text(text)


def test_a_comment_in_the_rules_reruns_nothing(everything):
    path = everything.folder / "rules" / "stats.smk"
    with written(path, path.read_text().replace("rule layer_stats:", "# why\n\n\nrule layer_stats: # what")):
        assert_reruns(everything, "")


def test_a_checkout_of_the_same_files_reruns_nothing(everything):
    made = (everything.folder / "results", everything.folder / ".snakemake")
    for path in everything.folder.rglob("*"):
        if path.is_file() and not any(path.is_relative_to(folder) for folder in made):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    assert_reruns(everything, "")


def test_results_that_are_touched_or_made_again_alike_rerun_nothing(everything):
    for path in (everything.folder / "results").rglob("*"):
        os.utime(path)
    assert_reruns(everything, "")


def test_results_without_their_records_give_a_warning_and_its_way_out_works(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".snakemake"))
    assert ".snakemake/ does not record how" in snakemake(folder, "--summary").stderr
    taken = snakemake(folder, "--touch", "--forceall", "--cores", "1")
    assert taken.returncode == 0, taken.stderr
    demo = folder / "demo" / "config.yaml"
    with written(demo, demo.read_text().replace("seed: 456", "seed: 457")):
        later = snakemake(folder, "--summary")
        assert "does not record" not in later.stderr
        assert "plans/random-balanced/plan.json" in pending_lines(later.stdout)
        kept = snakemake(folder, "--touch", "--cores", "1", "--", "results/demo/plans/random-balanced/plan.json")
        assert kept.returncode == 0, kept.stderr
        assert pending_lines(snakemake(folder, "--summary").stdout) == ""


def pending_lines(table: str) -> str:
    return "\n".join(line for line in table.splitlines()[1:] if not line.endswith("no update"))


def test_a_fresh_folder_gives_no_warning(workflow):
    assert "does not record" not in snakemake(workflow, "--summary").stderr
