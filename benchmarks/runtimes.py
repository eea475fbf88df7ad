"""What each runtime makes of each format, and what an export costs.

    python benchmarks/runtimes.py [--model demo/model] [--runtimes gguf mlx] [--formats int4 mxfp4] [--output table.tsv]
    python benchmarks/runtimes.py --export 3

The first gives every block's matrices one format, writes the plan for each runtime, loads what was written in the runtime itself, and prints
a Markdown table: verdict, stored type, largest |logit difference| and KL against the simulated plan, bytes of the weights. mlx and auto_round
need their own packages (docs/runtimes.md); rows of a runtime that is absent say so.

The second exports a random Llama-shaped checkpoint of that many GB to gguf (its base file, then the plan) and to compressed_tensors, each in a process
of its own, and prints times, their ratio, and peak memory over an interpreter that has only imported what the commands import.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
FORMATS = (
    *("bf16", "mxfp4", "mxfp4_mse", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8", "mxfp8_e5m2"),
    *("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int4_asym", "int8_asym"),
    *("q2_k", "q4_k", "q6_k", "q8_0"),
)
COLUMNS = ("runtime", "format", "verdict", "stored", "logit_difference", "kl", "bytes")


# ------------------------------------------------------------------------------------------------------------ runtime x format


def gguf_logits(path: Path, length: int, stack: ExitStack) -> Callable:
    """Return the function that computes a window's logits in llama.cpp, open until the stack is left."""
    import torch

    from bitplan.runtimes.gguf.llama_runtime import opened

    runtime = stack.enter_context(opened(path, length, 1))
    return lambda tokens: torch.from_numpy(runtime.window_logits(tokens.tolist()))


def compressed_tensors_logits(path: Path, length: int, stack: ExitStack) -> Callable:
    """The same in transformers, float32."""
    from bitplan.runtimes.compressed_tensors.scores import load_exact, logits_in

    return logits_in(load_exact(path))


def mlx_logits(path: Path, length: int, stack: ExitStack) -> Callable:
    """The same in mlx-lm, float32."""
    from bitplan.runtimes.mlx.scores import load_window_logits

    return load_window_logits(path)


def auto_round_logits(path: Path, length: int, stack: ExitStack) -> Callable:
    """The same in auto-round's torch backend, float16."""
    from bitplan.runtimes.auto_round.scores import load_half
    from bitplan.runtimes.compressed_tensors.scores import logits_in

    return logits_in(load_half(path))


LOGITS = {
    "gguf": gguf_logits,
    "compressed_tensors": compressed_tensors_logits,
    "mlx": mlx_logits,
    "auto_round": auto_round_logits,
}


def bytes_of(artifact: Path) -> int:
    """Return the bytes of the weights of a file or a folder."""
    files = [artifact] if artifact.is_file() else artifact.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def differences(run: Callable, tokens, logits_of: Callable) -> tuple[float, float]:
    """Return the largest |logit difference| from the simulation, and the mean KL of the runtime from it, in nats."""
    import torch

    from bitplan.evaluate.scores import divergence

    worst, kl, count = 0.0, 0.0, 0
    for window, each in enumerate(tokens):
        ours, theirs = logits_of(window, slice(0, len(each))), run(each)
        worst = max(worst, (ours - theirs).abs().max().item())
        log_p = torch.log_softmax(ours, dim=-1)
        kl, count = kl + divergence(log_p, log_p.exp(), theirs - ours).sum().item(), count + len(each)
    return worst, kl / count


def cell(runtime, form: str, model, reference, folder: Path) -> dict:
    """Return the row of a runtime and a format: every matrix of the blocks in that format, groups of 32 for integers."""
    from bitplan.config.settings import ExportSettings
    from bitplan.core.errors import UserError
    from bitplan.evaluate.perplexity import plan_hidden
    from bitplan.evaluate.scores import hidden_logits
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.plan import uniform_plan
    from bitplan.runtimes.check import check_plan
    from bitplan.runtimes.runtime import ExportJob

    plan = uniform_plan(model.info, form, group_size=32 if form.startswith("int") else None)
    checked = check_plan(runtime, plan, model.info)
    row = {"runtime": runtime.name, "format": form, "verdict": " and ".join(sorted(checked["verdicts"]))}
    if "refused" in checked["verdicts"]:
        return row
    row["stored"] = ", ".join(sorted({each["stored"] for each in checked["layers"]}))
    settings = {key: getattr(ExportSettings(), key) for key in runtime.settings}
    with redirect_stdout(sys.stderr):
        runtime.write(ExportJob(model.checkpoint, model.info, plan, folder / runtime.artifact, settings=settings))
    row["bytes"] = bytes_of(folder / runtime.artifact)
    hidden = plan_hidden(model.model, model.info, plan, reference.tokens, QuantizedWeights(limit=0))
    with ExitStack() as stack:
        try:
            run = LOGITS[runtime.name](folder / runtime.artifact, reference.tokens.shape[1], stack)
        except ImportError as error:
            return {**row, "why": f"not run: {error}"}
        except UserError as error:
            return {**row, "why": error.problems[0].code}
        found = differences(run, reference.tokens, hidden_logits(hidden, reference.head.read()))
    return {**row, "logit_difference": found[0], "kl": found[1]}


def rows(args: argparse.Namespace) -> Iterator[dict]:
    """Yield the row of each runtime and format."""
    from bitplan.reference.opening import open_reference, prepare_model
    from bitplan.runtimes.registry import runtime_named

    model = prepare_model(args.model, "fp32", "cpu", 1)
    reference = open_reference(args.text, model, args.length, args.sequences)
    for name in args.runtimes:
        for form in args.formats:
            with tempfile.TemporaryDirectory() as folder:
                yield cell(runtime_named(name), form, model, reference, Path(folder))


def shown(row: dict, column: str) -> str:
    """Return a cell as it is printed."""
    value = row.get(column)
    if value is None:
        return row.get("why", "") if column == "logit_difference" else ""
    if isinstance(value, str):
        return value.replace("_", " ") if column == "verdict" else f"`{value}`" if column in COLUMNS[:2] else value
    return f"{value:.1e}" if isinstance(value, float) else f"{value:,}"


def table(args: argparse.Namespace) -> None:
    """Print the table as Markdown, and write it as TSV."""
    print("| " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    lines = ["\t".join(COLUMNS)]
    for row in rows(args):
        print("| " + " | ".join(shown(row, name) for name in COLUMNS) + " |", flush=True)
        lines.append("\t".join(str(row.get(name, "")) for name in COLUMNS))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------------- export


def measured(*command: str) -> dict[str, float]:
    """Return wall and processor seconds and the peak memory (MB) of a command. Raises SystemExit where it fails."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"failed: {command}")
    seconds = time.perf_counter() - started
    return {"wall": seconds, "processor": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}


def exports(args: argparse.Namespace) -> None:
    """Print what the exports of a random checkpoint cost."""
    from walk import make_checkpoint

    modules = "transformers, gguf, llama_cpp, compressed_tensors, bitplan.runtimes.compressed_tensors.packing"
    imports = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import torch, {modules}"
    with tempfile.TemporaryDirectory() as place:
        folder, plan = Path(place) / "model", Path(place) / "plan.json"
        make_checkpoint(folder, args.export)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        mlp = {"pattern": "*.mlp.*", "wq": args.formats[0], "group_size": 32}
        plan.write_text(json.dumps({"default": {"wq": "int8", "group_size": 32}, "overrides": [mlp]}))
        found = {"imports": measured("-c", imports)}
        line = ("--model", str(folder), "--threads", str(args.threads))
        base = Path(place) / "base.gguf"
        found["gguf, base file"] = measured(command("convert_gguf.py"), *line, "--no-check", "--output", str(base))
        for runtime, more in (("gguf", ("--base", str(base))), ("compressed_tensors", ())):
            output, report = Path(place) / f"{runtime}.gguf", Path(place) / f"{runtime}.json"
            words = ("--plan", str(plan), "--runtime", runtime, "--output", str(output), "--report", str(report))
            found[runtime] = measured(command("export_plan.py"), *line, *words, *more)
            written = [output, *output.rglob("*")]
            found[runtime]["gb"] = sum(path.stat().st_size for path in written if path.is_file()) / 1e9
    print(
        f"checkpoint of {size / 1e9:.2f} GB, MLP in {args.formats[0]} g32, attention in int8 g32, {args.threads} threads"
    )
    for name, held in found.items():
        over, size = held["peak_mb"] - found["imports"]["peak_mb"], f"{held['gb']:.2f} GB" if "gb" in held else ""
        print(
            f"{name:<20} {held['wall']:7.1f} s {held['processor']:7.1f} s of processor {over:6.0f} MB over the imports  {size}"
        )
    for key in ("wall", "processor"):
        ours, theirs, base = (found[name][key] for name in ("compressed_tensors", "gguf", "gguf, base file"))
        print(f"compressed_tensors / gguf, {key}: {ours / theirs:.2f}; with the base file {ours / (theirs + base):.2f}")


def command(name: str) -> str:
    """Return the path of a command."""
    return str(ROOT / "scripts" / name)


def main() -> None:
    """Run what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--text", type=Path, default=ROOT / "demo" / "evaluation.txt")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--runtimes", nargs="+", default=list(LOGITS), choices=list(LOGITS))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--output", type=Path, help="TSV file to write")
    parser.add_argument(
        "--export", type=float, metavar="GB", help="time exports of a random checkpoint of this size instead"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.export:
        args.formats = ["int4"] if args.formats == list(FORMATS) else args.formats
        exports(args)
    else:
        table(args)


if __name__ == "__main__":
    main()
