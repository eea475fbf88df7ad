"""The table of runtimes, and what each has to say and to be."""

import re
import sys
from dataclasses import replace

import pytest

from bitplan.core.errors import UserError
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, uniform_plan
from bitplan.runtimes.registry import RUNTIMES, known_runtime, runtime_named, runtime_of
from bitplan.runtimes.runtime import Runtime, Verdict
from bitplan.runtimes.verdicts import plan_verdicts, refuse_unheld
from bitplan.workflow.code_versions import code_version, files_behind
from tests.conftest import ROOT
from tests.workflow.test_static import packages_of

STATUSES = {"exact", "exact_in_more_bits", "approximate", "refused"}


@pytest.fixture(scope="module")
def info(tiny):
    return describe(Checkpoint.open(tiny))


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_judges_every_format_and_says_why_where_it_is_not_exact(name, info):
    layer = info.quantizable[0]
    for form in FORMATS:
        verdict = runtime_named(name).verdict(layer, LayerPlan(form), info)
        assert verdict.status in STATUSES
        assert verdict.reason or verdict.status == "exact", form
        assert verdict.stored_bits > 0 or verdict.status == "refused", form


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_has_its_own_name_and_a_text_on_how_to_run(name, tmp_path):
    runtime = runtime_named(name)
    assert runtime.name == name and str(tmp_path / "x") in runtime.how_to_run(tmp_path / "x", "demo-plan-4.25bpw")


def test_no_two_runtimes_write_files_of_one_kind():
    suffixes = [
        runtime.artifact.rpartition(".")[2] for runtime in map(runtime_named, RUNTIMES) if not runtime.is_folder
    ]
    assert len(suffixes) == len(set(suffixes))


def test_a_file_is_of_the_runtime_that_its_name_says(tmp_path):
    assert runtime_of(tmp_path / "some.gguf").name == runtime_of(tmp_path / "a-file-of-no-ending").name == "gguf"


def test_a_name_that_is_not_in_the_table_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match="gguf"):
        runtime_named("guf")
    with pytest.raises(ValueError, match="gguf"):
        known_runtime("guf")


def test_a_plan_with_a_layer_that_a_runtime_refuses_is_not_written(info):
    def verdict(layer, made, info):
        refused = layer is info.quantizable[1]
        return Verdict("refused", "", 0.0, "too odd") if refused else Verdict("exact", "x", 4.0)

    runtime = Runtime("toy", "x.toy", verdict, dict, str)
    plan = uniform_plan(info, "q4_k")
    assert len(plan_verdicts(runtime, plan, info)) == len(info.quantizable)
    with pytest.raises(UserError) as caught:
        refuse_unheld(runtime, plan, info)
    (problem,) = caught.value.problems
    assert info.quantizable[1].name in problem.where and "toy: too odd" in problem.what


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_environment_of_a_runtime_has_every_package_that_its_commands_import(name):
    runtime = runtime_named(name)
    text = (ROOT / "envs" / f"{runtime.environment}.yaml").read_text()
    named = {found.lower().replace("_", "-") for found in re.findall(r"^ +- ([\w-]+)==", text, re.M)}
    for command in ("export_plan.py", "perplexity.py"):
        wanted = packages_of(files_behind(command, RUNTIMES[name])) - set(runtime.score_packages)
        assert {each for each in wanted if each.lower().replace("_", "-") not in named} == set()


def test_a_runtime_whose_packages_are_absent_is_written_and_not_scored():
    runtime = Runtime("toy", "x.toy", dict, dict, str, score=dict, score_packages=("json", "no_such_package"))
    assert runtime.absent_packages == ("no_such_package",) and not runtime.scored_here
    assert "perplexity.json" not in runtime.files
    there = replace(runtime, score_packages=("json",))
    assert there.scored_here and "perplexity.json" in there.files


def test_the_code_of_a_runtime_is_behind_its_own_files_alone():
    behind = {path.name for path in files_behind("export_plan.py")}
    assert "tensor_data.py" not in behind
    assert "tensor_data.py" in {path.name for path in files_behind("export_plan.py", RUNTIMES["gguf"])}
    assert code_version("export_plan.py") != code_version("export_plan.py", RUNTIMES["gguf"])


def test_the_table_and_what_it_says_of_runtimes_need_no_heavy_package():
    import subprocess

    program = (
        "import sys; from bitplan.runtimes.registry import RUNTIMES, runtime_named\n"
        "from bitplan.runtimes.palette import candidates, palette_of_runtimes\n"
        "for name in RUNTIMES: runtime_named(name).files\n"
        "assert all(runtime_named(name).holds(form) for name in RUNTIMES for form in (*candidates(), 'mxfp4/mxfp8'))\n"
        "assert all(palette_of_runtimes([runtime_named(name)]) for name in RUNTIMES)\n"
        "print([heavy for heavy in ('torch', 'numpy', 'gguf', 'transformers') if heavy in sys.modules])"
    )
    made = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == "[]"
