"""AutoRound's tuning and this project's rounding side by side: the same types and windows, files scored in llama.cpp, in one run.

    python benchmarks/auto_round.py --folder DIR [--model demo/model] [--scheme q4_k_s] [--steps 200] [--windows 64] [--threads 1]

AutoRound 0.16.1 is installed into DIR/packages without its dependencies (torch, transformers, accelerate and datasets are this project's). It
writes a GGUF; each method here gets a plan of that file's types, embedding included, so that the tensors have the same bytes. Seconds are of
rounding and writing the file, each in a process or call of its own: wall time, and the processor's, which other work on the machine disturbs less.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
PACKAGES = ("auto-round==0.16.1", "py-cpuinfo==9.0.0")
KEPT = ("lm_head", "model.embed_tokens")


def tune_with_auto_round(args: argparse.Namespace) -> None:
    """Write AutoRound's GGUF of the windows in windows.safetensors of `args.folder` into its `theirs`; print the seconds as JSON."""
    import torch
    from auto_round import AutoRound
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    windows = load_file(args.folder / "windows.safetensors")["tokens"]
    batches = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in windows]
    loaded = (
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(args.model),
    )
    data = {"dataset": torch.utils.data.DataLoader(batches, batch_size=1), "seqlen": windows.shape[1]}
    kept = {name: {"bits": 16} for name in KEPT}
    wall, own = time.perf_counter(), time.process_time()
    tuner = AutoRound(
        *loaded,
        scheme=f"gguf:{args.scheme}",
        iters=args.steps,
        nsamples=len(windows),
        device_map="cpu",
        layer_config=kept,
        **({} if args.rate is None else {"lr": args.rate}),
        **data,
    )
    tuner.quantize_and_save(str(args.folder / "theirs"), format=f"gguf:{args.scheme}")
    print(json.dumps({"wall": time.perf_counter() - wall, "processor": time.process_time() - own}))


def run_auto_round(args: argparse.Namespace) -> tuple[Path, dict[str, float]]:
    """Return AutoRound's file and its seconds; installs it first where it is not."""
    packages, theirs = args.folder / "packages", args.folder / "theirs"
    if not packages.exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *PACKAGES]
        subprocess.run(install, check=True)
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    words = ("--folder", args.folder, "--model", args.model, "--scheme", args.scheme, "--steps", args.steps, "--theirs")
    words += () if args.rate is None else ("--rate", args.rate)
    line = [sys.executable, "-P", __file__, *map(str, words), "--threads", str(args.threads)]
    made = subprocess.run(
        line, env={**os.environ, **threads, "PYTHONPATH": str(packages)}, capture_output=True, text=True
    )
    if made.returncode:
        sys.exit(made.stderr[-3000:])
    file = max(theirs.rglob("*.gguf"), key=lambda path: path.stat().st_mtime)
    return file, json.loads(made.stdout.splitlines()[-1])


def plan_of_file(file: Path, info):
    """Return the plan with the types of a GGUF file, and the bytes of its tensors."""
    from gguf import GGUFReader

    from bitplan.formats.ggml import TYPES
    from bitplan.plans.plan import LayerPlan, Plan
    from bitplan.runtimes.gguf.file import layer_names

    reader = GGUFReader(file)
    kinds, formats = (
        {each.name: each.tensor_type.name for each in reader.tensors},
        {kind: name for name, kind in TYPES.items()},
    )
    layers = {}
    for tensor, names in layer_names(reader, info).items():
        form = formats.get(kinds[tensor])
        for name in names:
            embedding = next(layer.is_embedding for layer in info.layers if layer.name == name)
            layers[name] = LayerPlan(form, embeddings=embedding) if form else LayerPlan()
    return Plan(layers), tensor_bytes(file)


def tensor_bytes(file: Path) -> int:
    """Return the bytes of a file's tensors."""
    from gguf import GGUFReader

    return sum(int(each.n_bytes) for each in GGUFReader(file).tensors)


def compare(args: argparse.Namespace) -> None:
    """Run all and print a line for each."""
    from safetensors.torch import save_file

    from bitplan.reference.opening import prepare_model
    from bitplan.reference.reference import make_reference
    from bitplan.reference.text import windows
    from bitplan.rounding.model import ModelRounding, round_plan
    from bitplan.rounding.tuning import TuningSettings
    from bitplan.runtimes.gguf.convert import convert
    from bitplan.runtimes.gguf.export import export_plan
    from bitplan.runtimes.gguf.options import GGUFOptions
    from bitplan.runtimes.gguf.scores import score_gguf
    from bitplan.search.optimal.paired import difference

    args.folder.mkdir(parents=True, exist_ok=True)
    model = prepare_model(args.model, "fp32", "cpu", args.threads)
    tokens = windows(args.model, args.calibration, args.length, args.windows)
    save_file({"tokens": tokens}, args.folder / "windows.safetensors")
    file, theirs = run_auto_round(args)
    fresh = make_reference(model.model, args.evaluation, args.length, args.evaluation_windows, "fp32")
    kl = score_gguf(file, fresh, args.threads).kl.double().mean(dim=1)
    plan, size = plan_of_file(file, model.info)
    print(f"AutoRound, {args.steps} steps: {size:,} bytes of tensors, KL {kl.mean():.6f}, {shown(theirs)}", flush=True)
    convert(model.model.checkpoint, args.folder / "base.gguf", name="base")
    for method, steps in [("nearest", 1), ("feedback", 1)] + [("tuned", steps) for steps in args.tuning_steps]:
        wall, own = time.perf_counter(), time.process_time()
        settings = ModelRounding(method, tuning=TuningSettings(steps))
        folder = args.folder / f"{method}-{steps}"
        rounded, _ = round_plan(model.model, model.info, plan, tokens, settings, folder / "rounded")
        export_plan(
            args.folder / "base.gguf", folder / "model.gguf", model.info, rounded, GGUFOptions(threads=args.threads)
        )
        ours = {"wall": time.perf_counter() - wall, "processor": time.process_time() - own}
        mine = score_gguf(folder / "model.gguf", fresh, args.threads).kl.double().mean(dim=1)
        apart = difference(mine.tolist(), kl.tolist())
        words = f"{apart.mean:+.6f} ({apart.low:+.6f} to {apart.high:+.6f}), {mine.mean() / kl.mean():.2f} of its KL"
        ratio = f"{ours['processor'] / theirs['processor']:.2f} of its processor time"
        name = f"{method}, {steps} steps" if method == "tuned" else method
        print(
            f"{name}: {tensor_bytes(folder / 'model.gguf'):,} bytes of tensors, KL {mine.mean():.6f}, {words}, {shown(ours)}, {ratio}",
            flush=True,
        )


def shown(seconds: dict[str, float]) -> str:
    """Return seconds in words."""
    return f"{seconds['wall']:.0f} s, {seconds['processor']:.0f} s of the processor"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--folder", type=Path, required=True, help="where its packages and all files are kept")
    flags.add_argument("--model", type=Path, default=ROOT / "demo/model")
    flags.add_argument("--calibration", type=Path, default=ROOT / "demo/calibration.txt")
    flags.add_argument("--evaluation", type=Path, default=ROOT / "demo/evaluation.txt")
    flags.add_argument("--scheme", default="q4_k_s", help="AutoRound's GGUF scheme")
    flags.add_argument(
        "--steps", type=int, default=200, help="AutoRound's iters: 200 by default, 50 in its recipe light"
    )
    flags.add_argument("--rate", type=float, help="AutoRound's lr: 5e-3 in its recipe light, else its own choice")
    flags.add_argument("--tuning-steps", type=int, nargs="+", default=[50])
    flags.add_argument("--windows", type=int, default=64)
    flags.add_argument("--evaluation-windows", type=int, default=32)
    flags.add_argument("--length", type=int, default=512)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.theirs:
        tune_with_auto_round(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
