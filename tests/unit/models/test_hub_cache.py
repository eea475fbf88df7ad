"""The cache of a hub's models, models by id in commands and in the workflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitplan.core.errors import UserError
from bitplan.models.hub import cache
from tests.hub_stand_in import Fault, serving
from tests.unit.models.hub_runs import FETCHED, TOKEN, WEIGHTS, assert_whole, environment, holds, run
from tests.workflow.conftest import copy_workflow


def test_the_cache_is_filled_checked_repaired_and_used_without_a_connection(hub, tmp_path, monkeypatch):
    hub.faults = [Fault("drop", WEIGHTS, times=1, at=100_000)]
    folder = cache.fetch(hub.id, None, None)
    assert_whole(folder, hub)
    assert folder.parent.parent == tmp_path / "cache" / "models--org--tiny" and folder.name == hub.commit
    assert hub.of(WEIGHTS)[-1].headers["range"] == "bytes=100000-"
    (folder / WEIGHTS).resolve().write_bytes(b"damaged")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HUB-CACHE-DAMAGED"):
        cache.fetch(hub.id, None, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert cache.fetch(hub.id, None, None) == folder
    assert_whole(folder, hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert cache.fetch(hub.id, None, None) == folder and not hub.asked


def test_a_cached_model_serves_while_the_hub_is_away(hub, monkeypatch, caplog):
    folder = cache.fetch(hub.id, "v1", None)
    monkeypatch.setattr(cache, "listed", lambda *_: (_ for _ in ()).throw(unreachable()))
    assert cache.fetch(hub.id, "v1", None) == folder and "as it is in the hub's cache" in caplog.text


def unreachable() -> Exception:
    import httpx2

    return httpx2.ConnectError("away")


def test_what_the_library_of_the_hub_finds_in_the_cache_is_the_same(hub, monkeypatch):
    from huggingface_hub import snapshot_download

    folder = cache.fetch(hub.id, "v1", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert snapshot_download(hub.id, revision="v1", allow_patterns=FETCHED) == str(folder)


def test_a_path_that_exists_always_wins_and_has_no_revision(hub, tmp_path, monkeypatch):
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert cache.located(Path("org/tiny"), None) == Path("org/tiny") and not hub.asked
    with pytest.raises(UserError, match="HUB-REVISION-OF-FOLDER"):
        cache.located(Path("org/tiny"), "main")


def test_a_command_takes_an_id_for_a_model(tiny, tmp_path):
    with serving(tiny) as served:
        env = environment(served, tmp_path, HF_TOKEN=TOKEN)
        arguments = ("--model", served.id, "--revision", "v1", "--output", tmp_path / "m.json", "--verbose")
        made = run("describe_model.py", *arguments, env=env)
        assert made.returncode == 0, made.stderr
        local = run("describe_model.py", "--model", tiny, "--output", tmp_path / "l.json", env=env)
        assert local.returncode == 0
        offline = run("describe_model.py", *arguments, env=env | {"HF_HUB_OFFLINE": "1"})
        assert offline.returncode == 0, offline.stderr
    described, same = (json.loads((tmp_path / name).read_text()) for name in ("m.json", "l.json"))
    assert described["fingerprint"] == same["fingerprint"] and described["layers"] == same["layers"]
    assert served.commit in described["path"]
    assert TOKEN not in made.stdout + made.stderr and not holds(tmp_path, TOKEN)


def snakemake(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["snakemake", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def with_model(folder: Path, model: str) -> tuple[str, str]:
    settings = {"models": {"x": {"path": model, "revision": "v1"}}, "plans": {"r": {"method": "random", "seed": 1}}}
    settings["models"]["x"] |= {"calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    (folder / "mine.yaml").write_text(json.dumps(settings))
    return "--configfile=mine.yaml", "--replace-workflow-config"


def test_a_revision_of_a_folder_is_refused_by_the_workflow(hub, tmp_path):
    folder = copy_workflow(tmp_path / "workflow")
    made = snakemake(folder, environment(hub, tmp_path), "-n", *with_model(folder, "demo/model"))
    assert made.returncode == 1 and "[HUB-REVISION-OF-FOLDER] models.x.revision" in made.stdout + made.stderr


def test_the_workflow_plans_a_download_without_a_connection_and_then_fetches(tiny, tmp_path):
    folder = copy_workflow(tmp_path / "workflow")
    with serving(tiny) as served:
        env = environment(served, tmp_path, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        settings = with_model(folder, served.id)
        planned = snakemake(folder, env | {"HF_HUB_OFFLINE": "1"}, "-n", *settings)
        assert planned.returncode == 0, planned.stdout + planned.stderr
        assert "rule download:" in planned.stdout and not served.asked
        served.faults = [Fault("status", WEIGHTS, status=404)]
        failed = snakemake(folder, env, "--cores", "1", *settings, "results/x/model.json")
        assert failed.returncode == 1 and (folder / "results/x/checkpoint/config.json").is_file()
        served.faults = []
        made = snakemake(folder, env, "--cores", "1", *settings, "results/x/model.json")
        assert made.returncode == 0, made.stdout + made.stderr
        assert [sum(one.sent) for one in served.of("config.json")] == [(tiny / "config.json").stat().st_size]
        again = snakemake(folder, env, "-n", *settings, "results/x/model.json")
        assert "Nothing to be done" in again.stdout + again.stderr
    record = json.loads((folder / "results/x/download.json").read_text())
    assert record["commit"] == served.commit and record["revision"] == "v1"
    assert json.loads((folder / "results/x/model.json").read_text())["path"] == "results/x/checkpoint"
