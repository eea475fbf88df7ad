"""A runtime of one's own: what it takes to add one, and that the workflow then writes, scores and shows nothing less."""

import filecmp
import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from tests.conftest import ROOT
from tests.workflow.conftest import snakemake

PARTS = ("Snakefile", "config.yaml", "rules", "scripts", "envs", "docs")
MODULE = '''"""Every planned matrix as numpy's own file: dequantized, float32."""

from bitplan.runtimes.runtime import Runtime, Verdict


def verdict(layer, made, info):
    """Return that every format is held, in 32 bits."""
    return Verdict("exact_in_more_bits", "float32", 32.0, "values are stored, not codes")


def write(job):
    """Write {layer: weight (out, in) float32} and return what was written."""
    import numpy as np
    import torch

    from bitplan.plans.apply import QuantizedWeights, planned_weight

    arrays, weights = {}, QuantizedWeights(limit=0, importance=job.importance)
    for layer in job.info.quantizable:
        name = f"{layer.name}.weight"
        value = job.checkpoint.read([name], torch.float32)[name]
        arrays[layer.name] = planned_weight(layer.name, value, job.plan, weights).numpy()
    np.savez(job.output, **arrays)
    return {"layers": len(arrays), "file_bytes": job.output.stat().st_size}


RUNTIME = Runtime("npz", "model.npz", verdict, write, lambda path, name: f"Load it: numpy.load({str(path)!r})")
'''
LINE = '    "npz": "bitplan.runtimes.npz",\n'


def add_runtime_(folder: Path) -> None:
    """Add the module and its line in the table."""
    (folder / "scripts/bitplan/runtimes/npz.py").write_text(MODULE)
    table = folder / "scripts/bitplan/runtimes/registry.py"
    head, found, tail = table.read_text().partition("RUNTIMES: Mapping[str, str] = {\n")
    assert found
    table.write_text(head + found + LINE + tail)


def touched(folder: Path) -> list[str]:
    """The files of a copy that are not as they are in the project."""
    files = [path.relative_to(folder) for part in PARTS for path in (folder / part, *(folder / part).rglob("*"))]
    return sorted(
        str(path)
        for path in files
        if (folder / path).is_file()
        and path.suffix != ".pyc"
        and not ((ROOT / path).is_file() and filecmp.cmp(ROOT / path, folder / path, shallow=False))
    )


def test_a_runtime_is_a_module_and_a_line_and_the_workflow_writes_its_files(tmp_path, demo):
    workflow, work = tmp_path / "workflow", tmp_path / "work"
    workflow.mkdir()
    work.mkdir()
    for part in PARTS:
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, workflow / part, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    add_runtime_(workflow)
    assert touched(workflow) == ["scripts/bitplan/runtimes/npz.py", "scripts/bitplan/runtimes/registry.py"]
    texts = {name: str(demo / f"{name}.txt") for name in ("calibration", "evaluation")}
    config = {
        "models": {"demo": {"path": str(demo / "model"), **texts, "runtimes": ["npz"]}},
        "plans": {"chance": {"method": "random", "seed": 7}},
        "imatrix": False,
    }
    (work / "mine.yaml").write_text(yaml.safe_dump(config))
    line = ("--snakefile", str(workflow / "Snakefile"), "--configfile", "mine.yaml", "--replace-workflow-config")
    run = snakemake(work, *line, "--cores", "1", "exports")
    assert run.returncode == 0, run.stderr[-2000:]
    results = work / "results/demo/plans/chance"
    report, plan = (json.loads((results / name).read_text()) for name in ("npz/report.json", "plan.json"))
    with np.load(results / "npz/model.npz") as held:
        assert report["runtime"] == "npz" and report["layers"] == len(held.files) == 28
        bits = {name: len(np.unique(held[name][0])) for name in held.files}
    narrow = [layer["layer"] for layer in plan["layers"] if layer["wq"] == "mxfp4"] if "layers" in plan else []
    assert all(bits[name] < 128 for name in narrow)
    assert not (work / "results/demo/base.gguf").exists()
    assert "numpy.load(" in (work / "logs/demo/chance/npz.log").read_text()
    again = snakemake(work, *line, "--cores", "1", "exports")
    assert "Nothing to be done" in again.stdout + again.stderr
