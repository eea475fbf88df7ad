"""A custom format, as docs/extending.md shows it: two files of the library, and every command knows it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SCRIPTS

CONFIG = {"overrides": [{"pattern": "*", "wq": "ternary"}]}


def pieces(title: str) -> list[str]:
    """The Python pieces of a section of docs/extending.md."""
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```py(?:thon)?\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of scripts/ with the format of the page: the module as it stands there, and its entry in the table."""
    scripts = tmp_path_factory.mktemp("own") / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    module, builder, entry = pieces("A custom format")[:3]
    (scripts / "bitplan/formats/ternary.py").write_text(module)
    table = scripts / "bitplan/formats/table.py"
    text = table.read_text()
    text = text.replace("\n\ndef _channels", f"\n\n{builder}\n\ndef _channels")
    table.write_text(text.replace("    **{name: partial(_ggml,", f"    {entry.strip()}\n    **{{name: partial(_ggml,"))
    return scripts


def run(tree: Path, name: str, *words: object) -> str:
    line = [sys.executable, tree / name, *map(str, words)]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    return made.stdout


def test_a_format_is_two_files(tree):
    before, after = content(SCRIPTS), content(tree)
    assert {name for name in after if before.get(name) != after[name]} == {
        "bitplan/formats/ternary.py",
        "bitplan/formats/table.py",
    }


def test_it_is_quantized_counted_and_scored(tree, tiny, tmp_path):
    config, text = tmp_path / "config.json", ROOT / "demo/evaluation.txt"
    config.write_text(json.dumps(CONFIG))
    run(tree, "quantize_model.py", "--model", tiny, "--layer-config", config, "--output", tmp_path / "checkpoint")
    run(tree, "calculate_avg_bits.py", "--model", tiny, "--config", config, "--json", tmp_path / "bits.json")
    scored = ("--length", 32, "--sequences", 2, "--output", tmp_path / "scores.json")
    run(tree, "perplexity.py", "--model", tiny, "--plan", config, "--text", text, *scored)
    bits, scores = (json.loads((tmp_path / name).read_text()) for name in ("bits.json", "scores.json"))
    # 2 bits a value and 16 a block of 64; the rows of 96 values have a whole scale for their last 32.
    assert 2.25 < bits["avg_bits_layers"] < 2.3 and bits["distribution"]["ternary"]["layers"] == 14
    assert scores["kl_mean"] > 0


def test_settings_and_the_page_of_formats_know_it(tree, tmp_path):
    program = "from bitplan.formats.pairs import parse_pair; print(parse_pair('ternary_g32/mxfp8'))"
    made = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True)
    assert "wq='ternary', aq='mxfp8', group_size=32" in made.stdout
    assert "| ternary | 2.25 | 64 |" in run(tree, "describe_formats.py", "--formats", "ternary", "--values", 2048)


def test_an_edit_of_its_module_reruns_what_quantizes(tree):
    program = "from bitplan.workflow.code_versions import code_version; print(code_version('perplexity.py'))"

    def version() -> str:
        return subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True).stdout

    before, path = version(), tree / "bitplan/formats/ternary.py"
    text = path.read_text()
    path.write_text(text.replace("1.2 *", "1.1 *"))
    after = version()
    path.write_text(text)
    assert before != after
