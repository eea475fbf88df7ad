"""Models of a hub, against a stand-in on loopback: what is fetched, what breaks, what is refused, what the user reads."""

import json
import signal
import socket
import subprocess
import time

import pytest

from bitplan.core.errors import UserError
from bitplan.models.hub import download as library
from bitplan.models.hub import transfer
from bitplan.models.hub.ids import looks_like_id
from tests import warm
from tests.conftest import SCRIPTS
from tests.hub_stand_in import Fault, serving
from tests.unit.models.hub_runs import FETCHED, TOKEN, WEIGHTS, assert_whole, environment, holds, run, visible


@pytest.mark.parametrize(
    ("text", "is_id"),
    [
        ("org/name", True),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", True),
        ("o/n_", True),
        ("name", False),
        ("a/b/c", False),
        ("/org/name", False),
        ("org/", False),
        ("../name", False),
        ("org/.name", False),
        ("org/name-", False),
        ("org/na--me", False),
        ("org/na..me", False),
        ("org/name.git", False),
        ("org/na me", False),
        ("org/größe", False),
        ("org/" + "n" * 97, False),
        ("results/model.json", False),
    ],
)
def test_an_id_has_the_form_that_the_hub_asks_for(text, is_id):
    assert looks_like_id(text) is is_id


def test_a_download_is_the_source_byte_for_byte_and_its_record_says_what_it_is(hub, tmp_path):
    env = environment(hub, tmp_path)
    asked = ("--model", hub.id, "--revision", "v1", "--output", tmp_path / "out", "--record", tmp_path / "r.json")
    made = run("download_model.py", *asked, env=env)
    assert made.returncode == 0, made.stderr
    assert_whole(tmp_path / "out", hub)
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["id"], record["revision"], record["commit"]) == (hub.id, "v1", hub.commit)
    assert [file["name"] for file in record["files"]] == FETCHED
    assert {"sha256", "blob_id"} == {key for file in record["files"] for key in file} - {"name", "size"}
    assert (tmp_path / "r.json.meta.json").is_file() and "4 files, 0.3 MB" in made.stdout


def test_only_files_that_a_checkpoint_is_read_from_are_asked_for(hub, tmp_path):
    library.download(hub.id, None, tmp_path / "out")
    got = {one.path.rpartition("/")[2] for one in hub.asked if "/resolve/" in one.path}
    assert got == set(FETCHED) and len(hub.of(WEIGHTS)) == 1


def test_a_second_download_checks_every_file_and_transfers_nothing(hub, tmp_path):
    library.download(hub.id, None, tmp_path / "out")
    hub.asked.clear()
    assert library.download(hub.id, None, tmp_path / "out").transferred == ()
    assert not [one for one in hub.asked if "/resolve/" in one.path]


def test_a_file_that_was_damaged_on_disk_is_found_and_fetched_again(hub, tmp_path):
    library.download(hub.id, None, tmp_path / "out")
    damaged = bytearray((tmp_path / "out" / WEIGHTS).read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "out" / WEIGHTS).write_bytes(damaged)
    assert library.download(hub.id, None, tmp_path / "out").transferred == (WEIGHTS,)
    assert_whole(tmp_path / "out", hub)


@pytest.mark.parametrize("how", ["drop", "reset", "truncate"])
def test_a_broken_transfer_goes_on_where_it_stopped(hub, tmp_path, how):
    hub.faults = [Fault(how, WEIGHTS, times=2, at=100_000)]
    library.download(hub.id, None, tmp_path / "out")
    assert_whole(tmp_path / "out", hub)
    ranges = [one.headers.get("range") for one in hub.of(WEIGHTS)]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert sum(sum(one.sent) for one in hub.of(WEIGHTS)) == 300_000


def test_a_hub_that_cannot_continue_a_file_gives_it_from_the_start(hub, tmp_path):
    hub.ignores_range = True
    hub.faults = [Fault("drop", WEIGHTS, times=1, at=100_000)]
    library.download(hub.id, None, tmp_path / "out")
    assert_whole(tmp_path / "out", hub)


@pytest.mark.parametrize("how", ["corrupt", "long"])
def test_a_damaged_file_is_fetched_anew(hub, tmp_path, how):
    hub.faults = [Fault(how, WEIGHTS, times=1)]
    library.download(hub.id, None, tmp_path / "out")
    assert_whole(tmp_path / "out", hub)
    assert [one.headers.get("range") for one in hub.of(WEIGHTS)] == [None, None]


@pytest.mark.parametrize(("name", "how"), [(WEIGHTS, "corrupt"), ("tokenizer.json", "corrupt"), (WEIGHTS, "long")])
def test_a_file_that_stays_damaged_is_refused_and_nothing_looks_like_it(hub, tmp_path, name, how):
    hub.faults = [Fault(how, name)]
    with pytest.raises(UserError, match=f"HUB-CHECKSUM.*{name}"):
        library.download(hub.id, None, tmp_path / "out")
    assert name not in visible(tmp_path / "out") and not list((tmp_path / "out").glob(f".{name}*.part"))


def test_a_file_that_stays_too_short_is_refused_after_a_bounded_number_of_tries(hub, tmp_path):
    hub.faults = [Fault("drop", WEIGHTS, at=0)]
    with pytest.raises(UserError, match="HUB-UNREACHABLE"):
        library.download(hub.id, None, tmp_path / "out")
    assert WEIGHTS not in visible(tmp_path / "out") and len(hub.of(WEIGHTS)) == transfer.TRIES


def test_a_download_that_was_killed_ends_whole_and_does_not_begin_again(hub, tmp_path):
    env, out = environment(hub, tmp_path), tmp_path / "out"
    hub.faults = [Fault("stall", WEIGHTS, times=1, at=200_000)]
    # Not warm: what is killed has to be the process itself.
    line = [warm.PYTHON, str(SCRIPTS / "download_model.py"), "--model", hub.id, "--output", str(out)]
    process = subprocess.Popen(line, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while time.monotonic() < until and not any(part.stat().st_size > 100_000 for part in out.glob(f".{WEIGHTS}*.part")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert WEIGHTS not in visible(out)
    made = run("download_model.py", "--model", hub.id, "--output", out, env=env)
    assert made.returncode == 0, made.stderr
    assert_whole(out, hub)
    begun = int(hub.of(WEIGHTS)[1].headers["range"].removeprefix("bytes=").rstrip("-"))
    assert begun > 100_000 and hub.of(WEIGHTS)[1].sent == [300_000 - begun]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_error_that_passes_is_waited_for(hub, tmp_path, status):
    hub.faults = [Fault("status", status=status, times=2), Fault("status", WEIGHTS, status=status, times=2)]
    library.download(hub.id, None, tmp_path / "out")
    assert_whole(tmp_path / "out", hub)


def test_pauses_grow(monkeypatch):
    slept, tries = [], iter(range(9))
    monkeypatch.setenv("BITPLAN_HUB_PAUSE", "2")
    monkeypatch.setattr(transfer.time, "sleep", slept.append)

    def action() -> str:
        import httpx2

        if next(tries) < 4:
            raise httpx2.ConnectError("no")
        return "done"

    assert transfer.retried(action, 6) == "done" and slept == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({"ratelimit": '"api";r=0;t=9'}, 9), ({"ratelimit": '"api";r=5;t=9'}, 0), ({}, 0)],
)
def test_the_pause_that_the_hub_asks_for_is_kept(hub, tmp_path, monkeypatch, headers, seconds):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    hub.faults = [Fault("status", WEIGHTS, status=429, times=1, headers=headers)]
    library.download(hub.id, None, tmp_path / "out")
    assert slept == [max(seconds, 0.01)]


def test_a_retry_after_that_is_a_date_is_understood():
    from email.utils import formatdate

    assert 50 < transfer.pause_asked({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert transfer.pause_asked({"Retry-After": "soon"}) == 0


@pytest.mark.parametrize(
    ("faults", "arguments", "token", "code"),
    [
        ([], ("--model", "org/other"), "", "HUB-NOT-FOUND"),
        ([Fault("status", status=401)], (), "", "HUB-NOT-FOUND"),
        ([Fault("status", status=404)], (), TOKEN, "HUB-NOT-FOUND"),
        ([], ("--revision", "v9"), TOKEN, "HUB-NO-REVISION"),
        ([], ("--revision", "../../x"), "", "HUB-BAD-REVISION"),
        ([], ("--model", "no-id"), "", "HUB-BAD-ID"),
        (
            [Fault("status", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})],
            (),
            TOKEN,
            "HUB-UNAUTHORIZED",
        ),
        ([Fault("status", WEIGHTS, status=403, headers={"X-Error-Code": "GatedRepo"})], (), TOKEN, "HUB-GATED"),
        ([Fault("status", status=403)], (), TOKEN, "HUB-UNAUTHORIZED"),
        ([Fault("status", status=429)], (), TOKEN, "HUB-RATE-LIMIT"),
        ([Fault("status", status=429, headers={"Retry-After": "86400"})], (), "", "HUB-RATE-LIMIT"),
        ([Fault("status", status=500)], (), TOKEN, "HUB-REFUSED"),
        ([Fault("status", WEIGHTS, status=404, headers={"X-Error-Code": "EntryNotFound"})], (), "", "HUB-REFUSED"),
        ([Fault("html")], (), TOKEN, "HUB-NO-HUB"),
        ([Fault("corrupt", WEIGHTS)], (), TOKEN, "HUB-CHECKSUM"),
        ([], (), f"{TOKEN}\x07", "HUB-BAD-TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_a_way_out_and_without_the_token(
    hub, tmp_path, faults, arguments, token, code
):
    hub.faults = [Fault(**vars(fault)) for fault in faults]
    env = environment(hub, tmp_path, **({"HF_TOKEN": token} if token else {}))
    arguments = ("--model", hub.id, "--output", tmp_path / "out", "--record", tmp_path / "r.json", *arguments)
    made = run("download_model.py", *arguments, "--verbose", env=env)
    told = [line for line in made.stderr.splitlines() if line.startswith("error ")]
    assert made.returncode == 2 and len(told) == 1 and f"[{code}] " in told[0] and ". " in told[0], made.stderr
    assert "Traceback" not in made.stderr and TOKEN not in made.stdout + made.stderr
    assert not holds(tmp_path, TOKEN) and not (tmp_path / "r.json").exists()
    short = run("download_model.py", *arguments, env=env) if faults == [Fault("status", status=429)] else made
    assert short is made or len(short.stderr.splitlines()) <= 3, short.stderr


def test_a_hub_that_cannot_be_reached_is_one_line_of_a_command(hub, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = environment(hub, tmp_path, HF_ENDPOINT=f"http://user:{TOKEN}@127.0.0.1:{port}")
    made = run("describe_model.py", "--model", "org/tiny", "--output", tmp_path / "m.json", env=env)
    assert made.returncode == 2 and len(made.stderr.splitlines()) <= 3 and TOKEN not in made.stderr
    assert f"no such folder here, and 127.0.0.1:{port} cannot be reached (ConnectError)" in made.stderr


def test_without_a_connection_and_without_the_model_in_the_cache_the_message_says_so(hub, tmp_path):
    env = environment(hub, tmp_path, HF_HUB_OFFLINE="1")
    made = run("describe_model.py", "--model", "demo/modle", "--output", tmp_path / "m.json", env=env)
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1 and not hub.asked
    assert "no such folder here, the hub's cache has no such model, and HF_HUB_OFFLINE is set" in made.stderr


def test_the_token_is_sent_to_the_hub_and_to_no_other_host(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(hub.folder) as storage:
        where = f"{storage.url}/{hub.id}/resolve/main/{WEIGHTS}"
        hub.faults = [Fault("status", WEIGHTS, status=302, headers={"Location": where})]
        library.download(hub.id, None, tmp_path / "out")
        assert_whole(tmp_path / "out", hub)
        sent = [one.headers.get("authorization") for one in hub.asked if hub.id in one.path]
        assert len(sent) == 5 and set(sent) == {f"Bearer {TOKEN}"}
        assert [one.headers.get("authorization") for one in storage.asked] == [None]


def test_a_login_that_is_stored_on_the_machine_is_not_used(hub, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    made = run("download_model.py", "--model", hub.id, "--output", tmp_path / "out", env=environment(hub, tmp_path))
    assert made.returncode == 0 and not [one for one in hub.asked if "authorization" in one.headers]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "a/../../config.json",
        "/tmp/evil.safetensors",
        "..\\evil.safetensors",
        "C:\\x\\config.json",
    ],
)
def test_a_name_that_leads_out_of_the_folder_is_refused_before_any_transfer(hub, tmp_path, name):
    hub.names = {name: b"evil"}
    with pytest.raises(UserError, match="HUB-UNSAFE-PATH"):
        library.download(hub.id, None, tmp_path / "deep" / "out")
    assert not [one for one in hub.asked if "/resolve/" in one.path] and not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ((WEIGHTS, "consolidated.safetensors"), "HUB-PICKLE-ONLY.*pytorch_model.bin"),
        ((WEIGHTS, "consolidated.safetensors", "pytorch_model.bin"), "HUB-NO-MODEL-FILES.*safetensors"),
        (("config.json",), "HUB-NO-MODEL-FILES.*config.json"),
    ],
)
def test_a_repository_that_cannot_be_read_is_refused_before_any_transfer(hub, tmp_path, gone, message):
    for name in gone:
        (hub.folder / name).unlink()
    with pytest.raises(UserError, match=message):
        library.download(hub.id, None, tmp_path / "out")
    assert not [one for one in hub.asked if "/resolve/" in one.path] and not (tmp_path / "out").exists()


def test_a_file_that_could_not_be_checked_is_refused(hub, tmp_path):
    hub.blind = True
    with pytest.raises(UserError, match="HUB-UNVERIFIABLE"):
        library.download(hub.id, None, tmp_path / "out")


def test_a_file_that_is_too_large_for_the_transfer_is_refused_with_another_way(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 200_000)
    with pytest.raises(UserError, match="HUB-FILE-TOO-LARGE"):
        library.download(hub.id, None, tmp_path / "out")


def test_a_new_revision_leaves_no_shard_of_the_old_one(hub, tmp_path):
    library.download(hub.id, None, tmp_path / "out")
    (hub.folder / WEIGHTS).rename(hub.folder / "model-00001-of-00001.safetensors")
    (hub.folder / "config.json").write_text('{"model_type": "gpt2"}')
    source = library.download(hub.id, None, tmp_path / "out")
    assert visible(tmp_path / "out") == [file.name for file in source.files] and WEIGHTS not in visible(
        tmp_path / "out"
    )
    assert (tmp_path / "out" / "config.json").read_text() == '{"model_type": "gpt2"}'


@pytest.mark.parametrize("name", [WEIGHTS, "other.safetensors"])
def test_files_that_no_download_put_there_are_neither_lost_nor_mixed_in(hub, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=f"HUB-FOREIGN-FILES.*{name}"):
        library.download(hub.id, None, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"mine" and visible(tmp_path / "out") == [name]


def test_a_disk_without_room_is_told_before_the_transfer(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(library.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="HUB-NO-ROOM"):
        library.download(hub.id, None, tmp_path / "out")
    assert not [one for one in hub.asked if "/resolve/" in one.path]


def test_a_downloaded_folder_is_checked_without_a_connection(hub, tmp_path, monkeypatch):
    library.download(hub.id, "v1", tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert library.download(hub.id, "v1", tmp_path / "out").commit == hub.commit and not hub.asked
    with pytest.raises(UserError, match="HUB-OFFLINE"):
        library.download(hub.id, "v2", tmp_path / "out")
    (tmp_path / "out" / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=f"HUB-OFFLINE.*{WEIGHTS}"):
        library.download(hub.id, "v1", tmp_path / "out")
