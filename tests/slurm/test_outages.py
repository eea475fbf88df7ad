"""A node, the controller or Snakemake itself goes away in the middle of a job: the same results, and one line says what happened."""

import os
import signal
import time

from tests.slurm.long_step import RULE, SCORES, TARGET


def test_a_job_whose_node_goes_down_is_run_again_on_another(cluster, started, folder, undisturbed):
    run = started(cluster, folder)
    run.start(TARGET)
    number, node = run.await_step(RULE)
    cluster.kill_node(node)
    try:
        assert run.finish() == 0, run.said[-3000:]
    finally:
        cluster.start_node(node)
    assert f"evaluation ({TARGET}): SLURM job {number} lost its node. Log: " in run.said
    assert "1 job ended early and was run again:" in run.said
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]


def test_a_controller_that_is_restarted_loses_no_job(cluster, started, folder, undisturbed):
    run = started(cluster, folder)
    run.start(TARGET, SCORES)
    run.await_step(RULE)
    cluster.stop_controller()
    time.sleep(25)  # longer than SLURM's commands wait by themselves, which is nine seconds
    cluster.start_controller()
    assert run.finish() == 0, run.said[-3000:]
    assert "SLURM's controller was away (.snakemake/slurm/away.log):" in run.said
    assert all((folder / name).read_bytes() == undisturbed[name] for name in (TARGET, SCORES))


def test_after_a_killed_snakemake_its_job_is_awaited_and_counts(cluster, started, folder, undisturbed):
    run = started(cluster, folder)
    run.start(TARGET)
    number, _ = run.await_step(RULE)
    cluster.ask("scontrol", "suspend", number)  # it must not end before all that follows has been tried
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    assert run.run(TARGET) == 1 and "--unlock" in run.said
    assert run.run("--unlock") == 0
    assert run.run(TARGET) == 1
    assert f"SLURM: an earlier run still has jobs in the queue: {number} (evaluation demo, suspended)" in run.said
    assert "python scripts/slurm_jobs.py --wait, or --cancel" in run.said and "Traceback" not in run.said
    cluster.ask("scontrol", "resume", number)
    waited = run.command("slurm_jobs.py", "--wait")
    assert waited.returncode == 0 and waited.stdout == "no jobs in the queue\n"
    assert run.run(TARGET) == 0 and "Nothing to be done" in run.said
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]


def test_after_a_killed_snakemake_its_job_can_be_cancelled_and_the_step_is_made_again(
    cluster, started, folder, undisturbed
):
    run = started(cluster, folder)
    run.start(TARGET)
    number, _ = run.await_step(RULE)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    cancelled = run.command("slurm_jobs.py", "--cancel")
    assert cancelled.stdout == "no jobs in the queue\n" and f"cancelling {number} (evaluation demo" in cancelled.stderr
    assert run.run("--unlock") == 0 and run.run(TARGET) == 0, run.said[-3000:]
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]
