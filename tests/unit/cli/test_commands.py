"""Commands as a person uses them: help, flags, errors, outputs."""

import argparse
import errno
import json
import runpy
import sys
from pathlib import Path

import pytest

import bitplan.cli.inputs
import bitplan.cli.parser
import bitplan.core.errors  # noqa: F401  # before any test takes modules away: the parser catches the errors of this import
from bitplan.cli.parser import _of_the_system, parser
from bitplan.config.flags import flag_name, style_of
from tests.conftest import SCRIPTS

COMMANDS = sorted(
    path.name for path in SCRIPTS.glob("*.py") if path.name != "set_up.py" and "__main__" in path.read_text()
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_heavy_import(name, monkeypatch, capsys):
    for heavy in ("torch", "transformers", "numpy", "gguf", "pandas"):
        monkeypatch.setitem(sys.modules, heavy, None)
    present = set(sys.modules)
    for module in [
        m for m in sys.modules if m.startswith("bitplan.") and m not in ("bitplan.cli", "bitplan.cli.parser")
    ]:
        above, _, leaf = module.rpartition(".")
        if hasattr(sys.modules.get(above), leaf):
            # What is imported anew is put there, and would stay when the modules of before are back.
            monkeypatch.setattr(sys.modules[above], leaf, getattr(sys.modules[above], leaf))
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    for module in [m for m in sys.modules if m.startswith("bitplan.") and m not in present]:
        # It holds the classes of this import, which are not those of before.
        del sys.modules[module]
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out


def flags_of(name: str, monkeypatch) -> dict[str, argparse.Action]:
    """The flags of a command, by its own parser."""
    caught = {}
    monkeypatch.setattr("bitplan.cli.parser.run", lambda parser, main: caught.update(parser._option_string_actions))
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    return caught


def test_the_documents_flags_have_the_documents_defaults(monkeypatch):
    adaptive = flags_of("adaptive_quantization_search.py", monkeypatch)
    wanted = {
        "--device": "cpu",
        # bf16 where the processor computes in it, and as many windows as memory holds.
        "--dtype": "auto",
        "--ppl-threshold": 0.1,
        "--target-avg-bits": 8.0,
        "--step-size": 0.5,
        "--batch-size": None,
    }
    assert {flag: adaptive[flag].default for flag in wanted} == wanted
    assert all(adaptive[flag].required for flag in ("--model", "--output-config", "--output-plan"))
    random = flags_of("random_mixed_precision_quantization.py", monkeypatch)
    wanted = {
        "--mxfp4-ratio": 0.3,
        "--bf16-ratio": 0.2,
        "--seed": 42,
        "--device": "cpu",
        "--dtype": "fp32",
        "--group-size": 32,
    }
    assert {flag: random[flag].default for flag in wanted} == wanted


def test_every_setting_is_a_flag_of_its_command(monkeypatch):
    from bitplan.config import settings
    from bitplan.search.plan_settings import CheckSettings
    from bitplan.search.registry import METHODS

    sections = {
        **{method.command: (method.settings,) for method in METHODS.values()},
        "sensitivity.py": (settings.SensitivitySettings, settings.ComputeSettings, settings.CalibrationWindows),
        "layer_stats.py": (settings.ComputeSettings, settings.CalibrationWindows),
        "teacher.py": (settings.ComputeSettings, settings.WindowSettings),
        "export_plan.py": (settings.ExportSettings,),
        "compare_real_quant.py": (settings.SpeedSettings,),
        "calculate_avg_bits.py": (CheckSettings,),
        "eval_with_lm_eval.py": (settings.TaskSettings, settings.ComputeSettings),
    }
    for command, models in sections.items():
        flags = {flag.lstrip("-") for flag in flags_of(command, monkeypatch)}
        fields = [each for model in models for each in model.model_fields.items() if not style_of(each[1]).other_step]
        names = {flag_name(key, field) for key, field in fields}
        assert names - {"method", "check"} <= flags, f"{command}: {names - flags}"


def test_a_method_whose_search_runs_the_model_has_the_flags_of_what_it_shares(monkeypatch):
    from bitplan.search.registry import METHODS

    for method in METHODS.values():
        flags = flags_of(method.command, monkeypatch)
        assert not any(shared.path == "compute" for shared in method.shared) or {"--device", "--dtype"} <= set(flags)
        assert {f"--{shared.flag}" for shared in method.shared if shared.flag} <= set(flags)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_that_is_a_file_says_whether_it_is_read_or_written(name, monkeypatch):
    undeclared = {action.dest for action in flags_of(name, monkeypatch).values() if action.type is Path}
    assert undeclared <= {"model"}, "give it a type of bitplan.cli.inputs"


def test_random_plan_is_written_as_its_document_says(command, tiny, tmp_path):
    made = command(
        "random_mixed_precision_quantization.py", "--model", tiny, "--output-config", tmp_path / "c.json", "--verbose"
    )
    config = json.loads((tmp_path / "c.json").read_text())
    assert config["default"] == {"wq": "mxfp8", "aq": "mxfp8", "group_size": 32}
    kept = {
        "total_layers",
        "mxfp4_layers",
        "bf16_layers",
        "mxfp8_layers",
        "mxfp4_ratio",
        "bf16_ratio",
        "mxfp8_ratio",
        "group_size",
        "seed",
    }
    assert kept <= config["summary"].keys() and config["summary"]["total_layers"] == 14
    low = [entry for entry in config["overrides"] if entry.get("precision") == "mxfp4"]
    assert len(low) == 4 and {"pattern", "wq", "aq", "group_size", "category", "precision"} <= low[0].keys()
    assert {"pattern": "lm_head", "skip": True, "category": "lm_head", "precision": "bf16"} in config["overrides"]
    assert "28.6%      30.0%" in made.stdout


def test_adaptive_search_is_written_as_its_document_says(command, tiny, demo, tmp_path):
    arguments = ("--model", tiny, "--calibration", demo / "calibration.txt", "--length", 64, "--sequences", 4)
    outputs = ("--output-config", tmp_path / "c.json", "--output-plan", tmp_path / "p.json")
    made = command("adaptive_quantization_search.py", *arguments, *outputs)
    config, plan = (json.loads((tmp_path / name).read_text()) for name in ("c.json", "p.json"))
    assert config["default"] == {"wq": "bf16", "aq": "bf16", "group_size": 32}
    summary = config["search_summary"]
    kept = {"mxfp4_threshold", "mxfp8_threshold", "ppl_threshold", "target_avg_bits", "step_size", "search_history"}
    assert kept <= summary.keys() and summary["ppl_increase"] <= 0.1
    step = summary["search_history"][0]
    assert {"stage", "threshold", "avg_bits", "ppl", "ppl_increase", "layers"} <= step.keys()
    assert {"pattern": "lm_head", "skip": True, "category": "lm_head"} in config["overrides"]
    assert len(plan["overrides"]) == 16 and plan["summary"] == summary
    assert "average bits" in made.stdout


def test_average_bits_are_printed_and_written(command, tiny, tmp_path):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"default": {"wq": "mxfp4"}}))
    outputs = ("--output", tmp_path / "layers.csv", "--json", tmp_path / "bits.json")
    made = command("calculate_avg_bits.py", "--config", config, "--model", tiny, *outputs)
    assert "avg_bits_layers  4.2500" in made.stdout and (tmp_path / "layers.csv").read_text().startswith(
        "layer,category"
    )
    assert json.loads((tmp_path / "bits.json").read_text())["avg_bits_layers"] == 4.25


def test_average_bits_say_how_many_layers_each_pattern_names(command, tiny, tmp_path):
    config = tmp_path / "c.json"
    patterns = ("q_proj", "*.mlp.*", "lm_head", "*")
    config.write_text(json.dumps({"overrides": [{"pattern": pattern, "wq": "mxfp4"} for pattern in patterns]}))
    made = command("calculate_avg_bits.py", "--config", config, "--model", tiny, "--json", tmp_path / "bits.json")
    assert "pattern 'q_proj' matches 2 layers\n" in made.stdout and "'*.mlp.*' matches 6 layers\n" in made.stdout
    assert "pattern '*' matches 16 layers; 2 of them are protected" in made.stdout
    counts = json.loads((tmp_path / "bits.json").read_text())["patterns"]
    assert {each["pattern"]: each["layers"] for each in counts} == {"q_proj": 2, "*.mlp.*": 6, "*": 16}


def test_a_dry_run_writes_nothing(command, tiny, tmp_path):
    (tmp_path / "c.json").write_text("{}")
    command(
        "calculate_avg_bits.py",
        "--config",
        tmp_path / "c.json",
        "--model",
        tiny,
        "--json",
        tmp_path / "bits.json",
        "--dry-run",
    )
    assert not (tmp_path / "bits.json").exists()


@pytest.mark.parametrize(("on_miss", "ok"), [("fail", False), ("warn", True)])
def test_a_missed_target_fails_or_warns(command, tiny, tmp_path, on_miss, ok):
    (tmp_path / "c.json").write_text("{}")
    arguments = ("--config", tmp_path / "c.json", "--model", tiny, "--target-avg-bits", 4, "--on-miss", on_miss)
    made = command("calculate_avg_bits.py", *arguments, "--json", tmp_path / "bits.json", ok=ok)
    assert "12.0000 over its target of 4" in made.stderr and (tmp_path / "bits.json").exists() is ok


def test_an_empty_list_of_flags_is_not_the_command_line_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pytest", "--seed", "3", "--wrong"])
    made = parser("")
    made.add_argument("--seed", type=int, default=7)
    assert made.parse_args([]).seed == 7
    with pytest.raises(SystemExit):
        made.parse_args(["--sed", "1"])
    assert "--sed" in capsys.readouterr().err


SHORTAGES = [
    (OSError(errno.ENOSPC, "whatever the language"), "SYSTEM-DISK-FULL"),
    (OSError(errno.EROFS, ""), "SYSTEM-READ-ONLY"),
    (PermissionError(errno.EACCES, ""), "SYSTEM-NO-PERMISSION"),
    (MemoryError(), "SYSTEM-NO-MEMORY"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:73] DefaultCPUAllocator: not enough memory"), "SYSTEM-NO-MEMORY"),
    (ValueError("I/O error: Kein Platz (os error 28)"), "SYSTEM-DISK-FULL"),
    (ValueError("No space left on device, says a text"), None),
    (OSError(errno.ENOENT, "no such file"), None),
]


@pytest.mark.parametrize(("error", "code"), SHORTAGES)
def test_shortages_of_the_machine_are_told_by_number_not_by_words(error, code):
    problem = _of_the_system(error, [Path("out.json")])
    assert (problem and problem.code) == code
