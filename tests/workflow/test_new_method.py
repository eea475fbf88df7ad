"""What a new search method takes: its folder, a line of the registry, a rule, a command; nothing else is touched.

Counted as files of code: everything in the method's own folder counts as one, since it is the method itself.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.workflow.conftest import copy_workflow, snakemake

FOLDER, REGISTRY = "scripts/bitplan/search/flat", "scripts/bitplan/search/registry.py"
RULES, COMMAND = "rules/search.smk", "scripts/flat_search.py"

SETTINGS = '''"""The settings of flat plans."""

from typing import Literal

from pydantic import Field

from bitplan.search.plan_settings import FormatName, PlanSettings


class FlatPlan(PlanSettings):
    """A plan with one format for every layer."""

    method: Literal["flat"]
    format: FormatName = Field("q4_k", description="format of every layer")
'''
PROGRAM = '''"""One format for every layer."""

import time
from argparse import ArgumentParser
from dataclasses import replace

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import add_model_flag, parser, run
from bitplan.config.flags import add_settings_flags
from bitplan.search.flat.settings import FlatPlan


def main(args) -> None:
    from bitplan.core.provenance import write_provenance
    from bitplan.models.layers import model_info
    from bitplan.plans.plan import LayerPlan, uniform_plan, write_config, write_plan

    started, info = time.monotonic(), model_info(args.model)
    plan = replace(uniform_plan(info, args.format), summary={"method": "flat", "cost": {"block_forward_tokens": 0}})
    write_config(args.output_config, plan, LayerPlan(), info)
    write_plan(args.output_plan, plan, LayerPlan(), info)
    write_provenance(args.output_plan, started)


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    add_settings_flags(flags, FlatPlan)
    flags.add_argument("--output-config", type=output_file, required=True, help="config.json to write")
    flags.add_argument("--output-plan", type=output_file, required=True, help="plan.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
'''
RULE = """

rule flat_plan:
    input:
        unpack(on_wildcards(inputs.search_inputs)),
    output:
        config="results/{model}/plans/{plan}/config.json",
        plan="results/{model}/plans/{plan}/plan.json",
    log:
        "logs/{model}/{plan}/search.log",
    wildcard_constraints:
        plan=one_of(targets.plans_of(SETTINGS, "flat")),
    localrule: True
    conda:
        "../envs/torch.yaml"
    params:
        code=code_version("flat_search.py"),
        script=script("flat_search.py"),
        flags=on_wildcards(flags.plan_flags),
    shell:
        "python {params.script:q} --model {input.model} {params.flags}"
        " --output-config {output.config} --output-plan {output.plan} > {log} 2>&1"
"""


def contents(folder: Path) -> dict[str, bytes]:
    """The files of the workflow's code, by their places."""
    paths = [folder / "Snakefile", *(p for part in ("rules", "scripts") for p in (folder / part).rglob("*"))]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.is_file() and p.suffix != ".pyc"}


def add_flat_method(folder: Path) -> None:
    """Add the method to a copy of the workflow."""
    (folder / FOLDER).mkdir()
    (folder / FOLDER / "__init__.py").write_text('"""Flat plans."""\n')
    (folder / FOLDER / "settings.py").write_text(SETTINGS)
    (folder / COMMAND).write_text(PROGRAM)
    with open(folder / RULES, "a") as rules:
        rules.write(RULE)
    registry = folder / REGISTRY
    lines = registry.read_text().replace("_ALL = (\n", '_ALL = (\n    Method(FlatPlan, "flat_search.py", "#000000"),\n')
    place = "from bitplan.search.genetic.settings"
    registry.write_text(lines.replace(place, f"from bitplan.search.flat.settings import FlatPlan\n{place}"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory, demo) -> tuple[Path, set[str]]:
    """A copy of the workflow with one more method, and the files that this touched."""
    folder = copy_workflow(tmp_path_factory.mktemp("method") / "copy")
    shutil.rmtree(folder / "demo")
    shutil.copytree(ROOT / "demo", folder / "demo")
    before = contents(folder)
    add_flat_method(folder)
    after = contents(folder)
    config = {
        "models": {"demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}},
        "plans": {"all-q6": {"method": "flat", "format": "q6_k"}},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder, {name for name in after if before.get(name) != after[name]}


def test_a_new_method_touches_four_files(extended):
    _, touched = extended
    counted = {FOLDER if name.startswith(f"{FOLDER}/") else name for name in touched}
    assert counted == {FOLDER, REGISTRY, RULES, COMMAND}


def test_a_new_method_is_searched_by_the_workflow(extended):
    folder, _ = extended
    target = "results/demo/plans/all-q6/bits.json"
    made = snakemake(folder, "--cores", "1", "--", target)
    assert made.returncode == 0, made.stderr[-2000:]
    plan = json.loads((folder / "results/demo/plans/all-q6/plan.json").read_text())
    assert {each["wq"] for each in plan["overrides"] if "wq" in each} == {"q6_k"}
    assert plan["summary"]["method"] == "flat"
    assert json.loads((folder / target).read_text())["avg_bits_layers"] == pytest.approx(6.5625)


def test_a_new_methods_settings_are_checked_as_those_of_every_method(extended):
    folder, _ = extended
    wrong = snakemake(folder, "--dry-run", "--config", "plans={x: {method: flat, fromat: q6_k}}")
    assert wrong.returncode == 1 and 'plans.x.fromat: unknown key. Did you mean "format"?' in wrong.stdout
