"""A cancelled job, and one that outgrows its memory: run again, with the same result, and one line says what happened."""

from tests.slurm.long_step import LOG, RULE, TARGET


def early(said: str) -> list[str]:
    """The lines at the end of a run about jobs that ended early."""
    lines = said.splitlines()
    return lines[lines.index("1 job ended early and was run again:") + 1 :][:1]


def test_a_cancelled_job_is_run_again(cluster, started, folder, undisturbed):
    run = started(cluster, folder)
    run.start(TARGET)
    number, _ = run.await_step(RULE)
    cluster.ask("scancel", number)
    assert run.finish() == 0, run.said[-3000:]
    (line,) = early(run.said)
    assert f"evaluation ({TARGET}): SLURM job {number} was cancelled. Log: {LOG}, " in line
    assert (
        line.endswith(f" .snakemake/slurm_logs/rule_evaluation/demo/{number}.log")
        and f"SLURM: {line.strip()}" in run.said
    )
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]


def test_a_job_over_its_memory_is_run_again_with_more(cluster, started, folder, undisturbed):
    run = started(cluster, folder)
    assert run.run(TARGET, "--set-resources", "evaluation:mem_mb=300 if attempt == 1 else 2000") == 0, run.said[-3000:]
    (line,) = early(run.said)
    assert (
        f"evaluation ({TARGET}): SLURM job " in line
        and f" ran out of memory. Log: {LOG}, .snakemake/slurm_logs/" in line
    )
    assert "mem_mb=300" in run.said and "mem_mb=2000" in run.said
    assert (folder / TARGET).read_bytes() == undisturbed[TARGET]


def test_a_job_that_no_node_can_take_is_named_with_what_sbatch_said(cluster, started, folder):
    run = started(cluster, folder)
    assert run.run(TARGET, "--set-resources", "evaluation:mem_mb=900000", "--retries", "0") == 1
    line = next(line for line in run.said.splitlines() if line.startswith("  evaluation"))
    assert f"evaluation ({TARGET}): could not be submitted: SLURM sbatch failed. The error message was" in line
    assert "1 job ended early:" in run.said and "Traceback" not in run.said


def test_a_step_on_a_gpu_asks_for_a_node_with_one(cluster, started, folder):
    run = started(cluster, folder)
    (folder / "gpu.yaml").write_text("compute: {device: cuda}")
    assert run.run(TARGET, "--configfile", "mine.yaml", "gpu.yaml", "--retries", "0") == 1
    assert "--gpus=1" in run.said and "could not be submitted" in run.said, "this cluster has none"
