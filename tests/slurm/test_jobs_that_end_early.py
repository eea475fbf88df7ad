"""A cancelled job, and one that outgrows its memory: run again, with the same result, and one line says what happened."""

from tests.slurm.long_step import LOG, TARGET, folder, undisturbed  # noqa: F401


def early(said: str) -> list[str]:
    """The lines at the end of a run about jobs that ended early."""
    lines = said.splitlines()
    return lines[lines.index("1 job ended early and was run again:") + 1 :][:1]


def test_a_cancelled_job_is_run_again(cluster, started, folder, undisturbed):  # noqa: F811
    run = started(cluster, folder)
    run.start(TARGET)
    number, _ = run.await_step(LOG)
    cluster.ask("scancel", number)
    assert run.finish() == 0, run.said[-3000:]
    (line,) = early(run.said)
    assert f"evaluation ({TARGET}): SLURM job {number} was cancelled. Log: {LOG}, " in line
    assert line.endswith(f"/{number}.log") and f"SLURM: {line.strip()}" in run.said
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]


def test_a_job_over_its_memory_is_run_again_with_more(cluster, started, folder, undisturbed):  # noqa: F811
    run = started(cluster, folder)
    assert run.run(TARGET, "--set-resources", "evaluation:mem_mb=400 if attempt == 1 else 2000") == 0, run.said[-3000:]
    (line,) = early(run.said)
    assert f"evaluation ({TARGET}): SLURM job 2 ran out of memory" in line and line.endswith("/2.log")
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]
