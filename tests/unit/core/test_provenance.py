"""What is recorded of how a result was produced."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
COMMAND = """
import subprocess, sys, time
from bitplan.core.provenance import write_provenance

started = time.monotonic()
held = b"x" * int(sys.argv[2])
subprocess.run([sys.executable, "-c", f"held = b'x' * {sys.argv[3]}"], check=True)
write_provenance(sys.argv[1], started, model="small")
"""


def recorded(folder: Path, own: int, of_child: int) -> dict:
    output = folder / f"{own}-{of_child}.json"
    words = [sys.executable, "-c", COMMAND, str(output), str(own), str(of_child)]
    subprocess.run(words, check=True, env={"PYTHONPATH": str(SCRIPTS)})
    return json.loads(Path(f"{output}.meta.json").read_text())


def test_a_record_has_the_largest_memory_of_the_command_or_of_a_program_that_it_ran(tmp_path):
    small, own, child = (recorded(tmp_path, *sizes) for sizes in ((0, 0), (200_000_000, 0), (0, 200_000_000)))
    assert small["peak_memory_bytes"] < 150_000_000
    assert all(200_000_000 < each["peak_memory_bytes"] < 400_000_000 for each in (own, child))
    assert 0 < small["processor_seconds"] < 60 and small["model"] == "small"


WARNING_COMMAND = """
import logging, sys, time
from bitplan.core.provenance import record_warnings_, write_provenance

record_warnings_()
for name, text in (("bitplan.plans", "odd %d"), ("bitplan.plans", "odd %d"), ("transformers", "not ours %d")):
    logging.getLogger(name).warning(text, 7)
logging.getLogger("bitplan").info("no warning")
write_provenance(sys.argv[1], time.monotonic())
"""


def test_a_record_has_the_project_s_own_warnings_each_once_and_the_log_that_they_stand_in(tmp_path):
    with (tmp_path / "step.log").open("w") as log:
        words = [sys.executable, "-c", WARNING_COMMAND, "result.json"]
        subprocess.run(words, check=True, env={"PYTHONPATH": str(SCRIPTS)}, cwd=tmp_path, stderr=log)
    record = json.loads((tmp_path / "result.json.meta.json").read_text())
    assert record["warnings"] == ["odd 7"]
    if sys.platform == "linux":
        assert record["log"] == "step.log"
