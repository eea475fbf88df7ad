"""The installed package: it carries the workflow, and its program works outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The program `bitplan` of a package that was built here and installed into an environment of its own.

    The packages it depends on are those of this environment.
    """
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    (site / "around.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(folder.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    return python.parent / "bitplan"


def start(program: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [str(program), *words]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(line, cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_the_program_lists_its_commands(program, tmp_path):
    assert "bitplan quantize" in start(program, tmp_path, "--help").stdout
    wrong = start(program, tmp_path, "quantise")
    assert wrong.returncode == 2 and "'quantise' is not a command" in wrong.stderr


def test_the_doctor_names_what_is_missing_and_what_to_do(program, tmp_path):
    seen = start(program, tmp_path, "doctor")
    lines = seen.stdout.splitlines()
    assert any(line.startswith("ok") and "torch" in line for line in lines), seen.stderr
    missing = [line for line in lines if line.startswith("missing")]
    assert [line for line in missing if "converter" in line and "--converter-only" in line], lines
    assert seen.returncode == 1


def test_the_installed_workflow_plans_its_steps_in_any_folder(program, tmp_path):
    words = ("--bits", "6", "-o", "small.gguf", "--dry-run", "--cores", "1")
    text = str(ROOT / "demo" / "calibration.txt")
    seen = start(program, tmp_path, "quantize", str(ROOT / "demo" / "model"), "--text", text, *words)
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "steps" in seen.stderr and not (tmp_path / "small.gguf").exists()
    assert list(tmp_path.glob(".bitplan/model-*/config.yaml"))
