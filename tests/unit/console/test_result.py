"""What `bitplan quantize` ends with: figures by their names, how to run the file here, and a card of the file as it lies there."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitplan.console import doctor, run_hint
from bitplan.console.project import Project, Wish
from bitplan.console.quantize import headline, result_lines, warnings_to_tell
from bitplan.console.result_card import card_of, command_of
from bitplan.console.run_hint import run_lines
from bitplan.console.step_warnings import StepWarning
from bitplan.core.files import write_json
from bitplan.core.provenance import versions
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.runtimes.card.card import card_text
from bitplan.runtimes.registry import runtime_named
from tests.families import TEXT

GGUF = runtime_named("gguf")
SCORES = {
    **{"scored": "gguf", "kl_mean": 0.005, "kl_mean_error": 0.0001, "ppl": 37.3, "base_ppl": 37.2},
    **{"top1_agreement": 0.9, "tokens": 508, "windows": 4},
}
REPORT = {
    **{"runtime": "gguf", "plan": "optimal-q4-k-m", "name": "tiny-optimal-7.61bpw", "avg_bits_file": 7.607},
    **{"types": {"Q5_0": 3}, "how_to_run": "llama-server -m model.gguf", "command": "export", "versions": versions()},
}


@pytest.fixture
def project(tiny, tmp_path, monkeypatch):
    """A project with the results of a plan with substitutes."""
    monkeypatch.chdir(tmp_path)
    made, wish = Project(tmp_path / "work" / "tiny", "tiny"), Wish(same_size_as="q4_k_m")
    plan = made.result("plans", wish.name)
    (plan / "rounding").mkdir(parents=True)
    (plan / "gguf").mkdir()
    write_json(made.result("model.json"), describe(Checkpoint.open(tiny)).to_json())
    entry = {"pattern": "model.layers.0.self_attn.q_proj", "wq": "q5_0", "substitute": "q4_k -> q5_0: 64 columns"}
    write_json(plan / "rounding" / "plan.json", {"default": {"wq": "q8_0"}, "overrides": [entry]})
    write_json(plan / "gguf" / "report.json", REPORT)
    write_json(plan / "gguf" / "perplexity.json", SCORES)
    recipe = made.result("baselines", "q4_k_m_imatrix", "perplexity.json")
    recipe.parent.mkdir(parents=True)
    write_json(recipe, {**SCORES, "kl_mean": 0.01})
    (tmp_path / "small.gguf").write_bytes(bytes(600_000))
    return made, wish


def test_the_bits_of_a_file_and_of_its_plan_and_the_interval_are_named():
    assert headline("small.gguf", 623_808, (7.607, 6.971), SCORES) == (
        "small.gguf: 0.6 MB, 7.61 bits per parameter of the file (6.97 of the plan's formats), against the original"
        " KL 0.00500 +- 0.00020 (95 %), perplexity 37.300"
    )


def test_the_result_says_why_types_are_none_of_those_asked_for(project):
    card = card_of(*project, TEXT, Path("small.gguf"), [])
    told = result_lines(*project, Path("small.gguf"), card)
    assert told[0].startswith("small.gguf: 0.6 MB, 7.61 bits") and told[1].startswith("llama.cpp's q4_k_m")
    assert "KL 0.01000 +- 0.00020 (95 %)" in told[1]
    assert told[2].startswith("Stored as 3 x Q5_0: 1 of ") and "llama.cpp's substitute (q4_k -> q5_0)" in told[2]


def test_a_warning_that_the_result_explains_is_not_told_again(project):
    made, wish = project
    texts = ["14 of 14 layers have rows that do not fit a format asked for", "odd tokens"]
    write_json(made.result("base.gguf.meta.json"), {"warnings": texts})
    assert [warning.text for warning in warnings_to_tell(made, wish)] == ["odd tokens"]


def test_the_card_names_the_file_as_it_lies_there_and_nothing_that_is_not_there(project):
    text = card_text(card_of(*project, TEXT, Path("small.gguf"), [StepWarning("odd tokens", Path("a.log"))]))
    assert (
        "llama-server -m small.gguf" in text and "echo 'FROM ./small.gguf' > small.Modelfile && ollama create" in text
    )
    assert "bitplan quantize MODEL --text TEXT --same-size-as q4_k_m " in text and " -o small.gguf" in text
    assert "\n- odd tokens\n" in text and str(project[0].folder) not in text
    for absent in ("model.gguf", "report.json", "plan.json", "a.log"):
        assert absent not in text, absent


def test_the_command_of_a_card_has_the_bits_that_were_asked_for():
    command = command_of(Wish(bits=4.5, rounding="nearest"), Path("a/b.gguf"))
    assert " --bits 4.5 " in command and " --rounding nearest " in command and command.endswith(" -o b.gguf")


def test_where_llama_server_is_installed_it_runs_the_file(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert run_lines(GGUF, Path("my file.gguf"), "mine") == ["Run it: llama-server -m 'my file.gguf'"]


LLAMA_CPP = """
class Llama:
    def __init__(self, path, verbose):
        self.path = path

    def __call__(self, text, max_tokens):
        return {"choices": [{"text": f"{self.path} goes on from {text!r}"}]}
"""


def test_elsewhere_python_runs_it_and_the_server_is_the_other_way(monkeypatch, tmp_path):
    (tmp_path / "llama_cpp.py").write_text(LLAMA_CPP)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(run_hint, "find_spec", lambda name: None)
    first, second = run_lines(GGUF, Path("my file's.gguf"), "mine")
    assert second.endswith("""llama-server -m 'my file'"'"'s.gguf'""")
    line, where = first.removeprefix("Run it: "), {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(line, shell=True, capture_output=True, text=True, check=True, env=where)
    assert ran.stdout == "my file's.gguf goes on from 'Once upon a time'\n"


def test_with_the_extras_of_llama_cpp_python_its_server_runs_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(run_hint, "find_spec", lambda name: name)
    assert run_lines(GGUF, Path("a.gguf"), "mine")[0].endswith(" -m llama_cpp.server --model a.gguf")


def test_doctor_looks_for_llama_server_and_does_not_fail_without_it(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (doctor._server,))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    doctor.main(SimpleNamespace(model=None))
    told = capsys.readouterr().out
    assert told.startswith("absent  llama-server") and "https://github.com/ggml-org/llama.cpp/releases" in told
