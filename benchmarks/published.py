"""The check at a paper's size, on a machine with a model hub: recipes of llama.cpp against optimal plans of the same size, as a Markdown table.

    python benchmarks/published.py --model Qwen/Qwen2.5-0.5B --folder published [--cores 16] [--device cuda]
    HF_TOKEN=... python benchmarks/published.py --model meta-llama/Llama-3.2-1B --folder published

Calibrated on WikiText-2's training text, scored on all of its test text in windows of 2,048 tokens. At the file size of each recipe (Q2_K to Q5_K_M):
the recipe without and with importance matrix, the optimal plan rounded to nearest and with error feedback. Each figure is of the exported file, in
llama.cpp, with standard errors over windows. It writes a configuration into a project and runs the workflow: an interrupted run is resumed by the
same command, and finished steps are kept. The table is FOLDER/MODEL-.../table.md, with all that has to be published beside it: versions, machine, commit.
`--calibration` and `--evaluation` take text files in the place of WikiText-2.
"""

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from bitplan.console.project import Project, absolute, project_of, write_configuration  # noqa: E402
from bitplan.console.snakemake_run import run_workflow  # noqa: E402
from bitplan.core.errors import UserError, user_error  # noqa: E402
from bitplan.core.files import read_json, write_aside  # noqa: E402
from bitplan.core.provenance import versions  # noqa: E402
from bitplan.reference.datasets import TEXT_SETS  # noqa: E402

SIZES = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m")
SPLITS = {"calibration": "train", "evaluation": "test"}
ROUNDINGS = ("nearest", "feedback")
HEADINGS = ("file", "bytes", "bits per weight", "KL, nats per token", "PPL", "top-1 agreement, %")


def wikitext(split: str) -> str:
    """Return a split of WikiText-2 (raw) as one text, from the hub or its cache. Raises `UserError`."""
    import pandas as pd
    from huggingface_hub import hf_hub_download

    known = TEXT_SETS["wikitext2"]
    try:
        path = hf_hub_download(known.repository, known.file.replace("train", split), repo_type="dataset")
        return (known.joined_by or "").join(pd.read_parquet(path)[known.column])
    except (OSError, ValueError, KeyError) as error:
        first = " ".join(str(error).split())[:160] or type(error).__name__
        what = f"cannot be downloaded from the hub: {first}"
        hint = "Give text files with --calibration and --evaluation, or connect to the network"
        raise user_error("TEXT-NOT-FETCHED", f"{known.repository}, {split}", what, hint) from None


def texts_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the paths of the two texts; WikiText-2's are downloaded once."""
    found = {}
    for use, split in SPLITS.items():
        given, kept = getattr(args, use), args.folder / f"wikitext-2-{split}.txt"
        if given is None and not kept.exists():
            text = wikitext(split)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with write_aside(kept) as aside:
                aside.write_text(text, encoding="utf-8")
        found[use] = str((given or kept).resolve())
    return found


def plan_name(size: str, rounding: str) -> str:
    """Return the name of the optimal plan at a recipe's size."""
    return f"optimal-{size}-{rounding}"


def configuration(project: Project, args: argparse.Namespace) -> dict[str, Any]:
    """Return the workflow's configuration."""
    model = {"path": absolute(args.model), **texts_of(args), "runtimes": ["gguf"]}
    windows = {
        "calibration": args.calibration_windows,
        "validation": args.validation_windows,
        "evaluation": args.windows,
    }
    return {
        "models": {project.name: model | ({"revision": args.revision} if args.revision else {})},
        "plans": {
            plan_name(size, rounding): {"method": "optimal", "same_size_as": size, "rounding": rounding}
            for size in args.sizes
            for rounding in ROUNDINGS
        },
        "baselines": [f"{size}{end}" for size in args.sizes for end in ("", "_imatrix")],
        **{use: {"length": args.length, "sequences": count} for use, count in windows.items()},
        "sensitivity": {"draws": args.draws, "memory_limit": args.memory_limit},
        "compute": {"device": args.device, "threads": args.threads},
    }


def scored_files(project: Project, sizes: tuple[str, ...]) -> Iterator[tuple[str, str, Path]]:
    """Yield (size, what it is, folder) of each file of the table; the folder has model.gguf and perplexity.json."""
    for size in sizes:
        yield size, size.upper(), project.result("baselines", size)
        yield size, f"{size.upper()}, importance matrix", project.result("baselines", f"{size}_imatrix")
        for rounding in ROUNDINGS:
            yield size, f"optimal, {rounding}", project.result("plans", plan_name(size, rounding), "gguf")


def _with_error(mean: float, error: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table_row(what: str, folder: Path, parameters: int) -> tuple[str, ...]:
    """Return the cells of a file's row."""
    scores, size = read_json(folder / "perplexity.json"), (folder / "model.gguf").stat().st_size
    return (
        what,
        f"{size:,}",
        f"{8 * size / parameters:.3f}",
        _with_error(scores["kl_mean"], scores["kl_mean_error"], 5),
        _with_error(scores["ppl"], scores["ppl_error"], 3),
        f"{100 * scores['top1_agreement']:.2f}",
    )


def processor() -> str:
    """Return the processor's name as the system gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def machine(device: str) -> str:
    """Return the machine in words: processor, cores, and the GPU if one computes."""
    import torch

    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{processor()}, {os.cpu_count()} cores{gpu}"


def facts(project: Project, args: argparse.Namespace) -> list[str]:
    """Return what has to be known about the figures, a line each."""
    record = project.result("download.json")
    commit = read_json(record).get("commit") if record.exists() else None
    scores = read_json(next(scored_files(project, tuple(args.sizes)))[2] / "perplexity.json")
    given = {use: getattr(args, use) for use in SPLITS}
    texts = ", ".join(
        f"{use}: {given[use].name if given[use] else f'WikiText-2 (raw), {SPLITS[use]}'}" for use in SPLITS
    )
    return [
        f"Model: {args.model if commit else project.name}" + (f", commit {commit}" if commit else ""),
        f"Texts: {texts}",
        f"Windows of {args.length} tokens: {scores['windows']} scored, {args.calibration_windows} for statistics and prices, "
        f"{args.validation_windows} for validation; {args.draws} draws; BOS {scores['bos']}",
        f"Full precision: PPL {scores['base_ppl']:.3f}. ± is the standard error of the mean over windows",
        f"Machine: {machine(args.device)}; compute device {args.device}, llama.cpp on the CPU",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items() if version),
        "Made by: python benchmarks/published.py " + " ".join(given_flags(args)),
    ]


def given_flags(args: argparse.Namespace) -> Iterator[str]:
    """Yield the flags that repeat a run; folders and files by their last part, as they lie elsewhere on another machine."""
    for name, value in vars(args).items():
        if value is None or name in ("cores", "more", "folder"):
            continue
        shown = [
            Path(each).name if isinstance(each, Path) else str(each)
            for each in (value if isinstance(value, list) else [value])
        ]
        yield f"--{name.replace('_', '-')} {' '.join(shown)}"


def table(project: Project, args: argparse.Namespace) -> str:
    """Return the table and what has to be known about it, as Markdown."""
    parameters = read_json(project.result("model.json"))["parameters"]
    rows = [table_row(what, folder, parameters) for _, what, folder in scored_files(project, tuple(args.sizes))]
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    return (
        "\n".join(
            [f"- {fact}" for fact in facts(project, args)] + [""] + [f"| {' | '.join(cells)} |" for cells in lines]
        )
        + "\n"
    )


def run(args: argparse.Namespace) -> Path:
    """Make all files and scores, or those still missing, and write the table. Returns its path."""
    project = project_of(args.model, args.folder.resolve())
    write_configuration(project, configuration(project, args))
    files = [folder / "perplexity.json" for _, _, folder in scored_files(project, tuple(args.sizes))]
    run_workflow(project, files, args.cores, ["--rerun-incomplete", *args.more])
    made = project.folder / "table.md"
    with write_aside(made) as aside:
        aside.write_text(table(project, args), encoding="utf-8")
    return made


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", required=True, help="id on the model hub, or the folder of a checkpoint")
    flags.add_argument("--revision", help="branch, tag or commit on the hub")
    flags.add_argument("--folder", type=Path, default=Path("published"), help="where texts, results and the table go")
    flags.add_argument("--sizes", nargs="+", default=list(SIZES), help="recipes whose sizes are compared")
    flags.add_argument("--calibration", type=Path, help="text file in the place of WikiText-2's training text")
    flags.add_argument("--evaluation", type=Path, help="text file in the place of WikiText-2's test text")
    flags.add_argument("--length", type=int, default=2048, help="tokens per window")
    flags.add_argument("--windows", type=int, help="windows that are scored; all of the text by default")
    flags.add_argument("--calibration-windows", type=int, default=32)
    flags.add_argument("--validation-windows", type=int, default=8)
    flags.add_argument("--draws", type=int, default=8, help="draws of labels for each window, for prices")
    flags.add_argument("--memory-limit", default="16GB", help="memory for gradients and states while prices are found")
    flags.add_argument("--device", default="cpu", help="where the model is run: cpu, cuda")
    flags.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="processor threads of each step")
    flags.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="processor cores of the whole run")
    flags.add_argument("more", nargs="*", help="after --: more flags for Snakemake")
    return flags


def main() -> None:
    try:
        print(run(build_parser().parse_args()).read_text(), end="")
    except UserError as error:
        sys.exit("\n".join(f"error {problem}" for problem in error.problems))


if __name__ == "__main__":
    main()
