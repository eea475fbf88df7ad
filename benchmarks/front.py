"""The front: optimal plans against llama.cpp's recipes, uniform formats, random, genetic and adaptive plans, measured on exported files.

    python benchmarks/front.py [--model demo/model --calibration demo/calibration.txt --evaluation demo/evaluation.txt]
        [--palette q2_k q3_k q4_k q5_k q6_k q8_0] [--recipes q3_k_m q4_k_m q5_k_m] [--targets 2.75 3 ...] [--folder DIR]

KL is of each GGUF file in llama.cpp on the evaluation text; differences are paired by window, with 95 % intervals. One measurement
(`sensitivity.py --anchors all`; with `--prices 8` prices of 8 draws instead) serves all optimal plans. Random is the best of 50 plans drawn by lot at each target, by KL on half of the calibration
windows; genetic searches the same table. All have the same importance matrix. With `--rounding feedback tuned` the optimal plans are also rounded so,
on the first `--rounding-windows` windows of the calibration text, and compared with themselves and with the recipe.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402
from torch import Tensor  # noqa: E402

from bitplan.evaluate.perplexity import score_plan  # noqa: E402
from bitplan.plans.apply import QuantizedWeights  # noqa: E402
from bitplan.plans.plan import Plan, average_bits, read_plan, uniform_plan  # noqa: E402
from bitplan.reference.opening import PreparedModel, prepare_model  # noqa: E402
from bitplan.reference.reference import Reference, make_reference  # noqa: E402
from bitplan.reference.text import windows  # noqa: E402
from bitplan.report.figure import draw  # noqa: E402
from bitplan.rounding.model import ModelRounding, round_plan  # noqa: E402
from bitplan.runtimes.gguf.export import export_plan  # noqa: E402
from bitplan.runtimes.gguf.options import GGUFOptions  # noqa: E402
from bitplan.runtimes.gguf.scores import score_gguf  # noqa: E402
from bitplan.search.damage import PlanDamage  # noqa: E402
from bitplan.search.genetic.algorithm import GeneticSettings  # noqa: E402
from bitplan.search.genetic.algorithm import search as genetic  # noqa: E402
from bitplan.search.knapsack.choices import total_size  # noqa: E402
from bitplan.search.optimal.candidates import chosen_table  # noqa: E402
from bitplan.search.optimal.command import budgets_of  # noqa: E402
from bitplan.search.optimal.paired import difference  # noqa: E402
from bitplan.search.optimal.run import OptimalSearch, OptimalSettings  # noqa: E402
from bitplan.sensitivity.table import read_sensitivity_table  # noqa: E402
from bitplan.statistics.importance import read_importance  # noqa: E402

FEWEST_DRAWS = 50


@dataclass
class Bench:
    """What is compared, and where the files are. `rows` are the points of the figure."""

    args: argparse.Namespace
    model: PreparedModel
    evaluation: Reference
    importance: dict
    rows: list[dict] = field(default_factory=list)
    by_window: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: Tensor | None = None

    @property
    def folder(self) -> Path:
        """Where files are kept."""
        return self.args.folder

    def score(self, name: str, method: str, file: Path) -> np.ndarray:
        """Score a file, add its point, and return its KL by window."""
        scores = score_gguf(file, self.evaluation, self.args.threads)
        kl = scores.kl.double().mean(dim=1).numpy()
        size = file.stat().st_size
        self.rows.append(
            {
                "name": name, "method": method, "avg_bits_file": 8 * size / self.model.info.parameters, "file_bytes": size,
                "file_kl": float(kl.mean()), "file_kl_error": float(kl.std(ddof=1) / len(kl) ** 0.5),
            }
        )  # fmt: skip
        self.by_window[name] = kl
        return kl

    def export(self, name: str, method: str, plan: Plan) -> np.ndarray:
        """Export a plan, score the file and return its KL by window."""
        file = self.folder / f"{name}.gguf"
        export_plan(
            self.folder / "base.gguf",
            file,
            self.model.info,
            plan,
            GGUFOptions(importance=self.importance, threads=self.args.threads),
        )
        kl = self.score(name, method, file)
        if not self.args.keep:
            file.unlink()
        return kl

    def rounded(self, plan: Plan, rounding: str) -> Plan:
        """Return a plan with its weights rounded on the calibration windows."""
        started, settings = time.perf_counter(), ModelRounding(rounding)
        # The codes are read again when the plan is exported, so that the folder stays as long as the files do.
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "rounded"
        made, _ = round_plan(self.model.model, self.model.info, plan, self.calibration, settings, folder)
        print(f"    {rounding}: {time.perf_counter() - started:.0f} s", flush=True)
        return made


def command(*words: object) -> None:
    """Run a command of scripts/ and show its last lines."""
    started = time.perf_counter()
    line = [sys.executable, str(ROOT / "scripts" / str(words[0])), *map(str, words[1:])]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(made.stderr[-2000:])
    print(f"{words[0]}: {time.perf_counter() - started:.0f} s", flush=True)


def prepare(args: argparse.Namespace) -> None:
    """Make statistics, base file, recipes and the sensitivity table, each unless it is there."""
    folder, model = args.folder, args.model
    windows = ("--length", args.length, "--sequences", args.sequences)
    stats, base, table = folder / "layer_stats.tsv", folder / "base.gguf", folder / "sensitivity.tsv"
    if not stats.exists():
        more = ("--importance", stats.with_suffix(".safetensors"), "--save-text", folder / "calibration.safetensors")
        command(
            "layer_stats.py", "--model", model, "--calibration", args.calibration, *windows, "--output", stats, *more
        )
    if not base.exists():
        command("convert_gguf.py", "--model", model, "--output", base)
    for recipe in args.recipes:
        for name, more in (
            (recipe, ()),
            (f"{recipe}_imatrix", ("--imatrix", stats.with_suffix(".safetensors"), "--model", model)),
        ):
            if not (folder / f"{name}.gguf").exists():
                command(
                    "baseline_gguf.py", "--base", base, "--recipe", recipe, "--output", folder / f"{name}.gguf", *more
                )
    if not table.exists():
        outside = ("--embeddings", *args.embeddings) if args.embeddings else ()
        priced = ("--metric", "gradient", "--draws", args.prices, "--rounding", args.price_rounding)
        how = priced if args.prices else ("--anchors", "all")
        measured = (*how, "--palette", *args.palette, *outside, "--no-smoothing")
        more = ("--imatrix", stats.with_suffix(".safetensors"), "--layer-stats", stats, "--threads", args.threads)
        command(
            "sensitivity.py",
            "--model",
            model,
            "--calibration",
            folder / "calibration.safetensors",
            *measured,
            *more,
            "--output",
            table,
        )


def drawn(search: OptimalSearch, budget: float, count: int, seed: int = 0) -> list[np.ndarray]:
    """Return choices drawn by lot and brought to the budget by random single steps down, then up where they fit."""
    choices, rng = search.problem.choices, np.random.default_rng(seed)
    sizes = np.where(choices.allowed, choices.size, np.inf)
    order, allowed = sizes.argsort(axis=1), choices.allowed.sum(axis=1)
    units, made = np.arange(len(order)), []
    while len(made) < count:
        place = rng.integers(allowed)
        while total_size(choices, order[units, place]) > budget:
            unit = rng.integers(len(order))
            place[unit] = max(0, place[unit] - 1)
        for unit in rng.permutation(len(order)):
            more = place.copy()
            more[unit] = min(allowed[unit] - 1, more[unit] + 1)
            place = more if total_size(choices, order[units, more]) <= budget else place
        made.append(order[units, place])
    return made


def rivals(bench: Bench, search: OptimalSearch, target: float, budget: float, draws: int) -> dict[str, np.ndarray]:
    """Return the KL by window of the random and the genetic plan of a budget."""
    seen = PlanDamage(bench.model, search.calibration, search.weights, search._plan_of)
    half = seen.windows // 2
    best = min(drawn(search, budget, draws), key=lambda choice: float(seen.by_window(choice, half).mean()))
    ones = np.ones(len(search.problem.choices.layers))
    bred = genetic(search.problem.choices, budget, GeneticSettings(), ones, ones.tolist(), []).choice
    plans = {"random": best, "genetic": bred}
    return {how: bench.export(f"{how}-{target:g}", how, search._plan_of(choice)) for how, choice in plans.items()}


def told(name: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return a comparison in words: both KL, the paired difference with its interval."""
    made = difference(ours, theirs)
    word = "lower" if made.lower else "no worse" if made.low <= 0 else "HIGHER"
    return f"{name} {theirs.mean():.6f} ({made.mean:+.6f}, {made.low:+.6f} to {made.high:+.6f}: {word})"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", type=Path, default=ROOT / "demo/model")
    flags.add_argument("--calibration", type=Path, default=ROOT / "demo/calibration.txt")
    flags.add_argument("--evaluation", type=Path, default=ROOT / "demo/evaluation.txt")
    flags.add_argument("--skip-evaluation", type=int, default=0, help="windows of the evaluation text to leave out")
    flags.add_argument("--palette", nargs="+", default=["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"])
    flags.add_argument("--embeddings", nargs="*", default=["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"])
    flags.add_argument("--recipes", nargs="*", default=["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"])
    flags.add_argument("--adaptive", nargs="*", type=Path, default=[], help="plan.json of adaptive searches")
    flags.add_argument("--targets", nargs="*", type=float, default=[2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8])
    flags.add_argument(
        "--against", nargs="*", type=float, default=[3, 4, 5, 6], help="targets of random and genetic plans"
    )
    flags.add_argument("--swaps", type=int, default=12, help="steps that corrections measure")
    flags.add_argument(
        "--rounding", nargs="*", default=[], help="at recipes' sizes and targets also optimal plans rounded so"
    )
    flags.add_argument("--rounding-windows", type=int, default=64, help="calibration windows to round on")
    flags.add_argument(
        "--prices", type=int, default=0, help="draws of prices by gradients, in the place of measured KL"
    )
    flags.add_argument("--price-rounding", choices=("nearest", "feedback"), default="nearest")
    flags.add_argument(
        "--simulate", action="store_true", help="say what of a rounded plan's KL is llama.cpp's arithmetic"
    )
    flags.add_argument("--no-correction", action="store_true", help="take the exact solutions as they are")
    flags.add_argument("--no-uniform", action="store_true", help="leave out one format everywhere")
    flags.add_argument("--length", type=int, default=512)
    flags.add_argument("--sequences", type=int, default=16)
    flags.add_argument("--draws", type=int, default=FEWEST_DRAWS)
    flags.add_argument("--refine", action="store_true")
    flags.add_argument("--threads", type=int, default=2)
    flags.add_argument("--folder", type=Path, default=Path("front"))
    flags.add_argument("--keep", action="store_true", help="keep the exported files")
    args = flags.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    prepare(args)
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Search, export, score and print; write the points and the figure."""
    model = prepare_model(args.model, "fp32", "cpu", args.threads)
    info = model.info
    tensors = read_importance(args.folder / "layer_stats.safetensors", info.quantizable)
    importance = {name: values.numpy() for name, values in tensors.items()}
    text = (args.length, 32, "fp32")
    bench = Bench(
        args, model, make_reference(model.model, args.evaluation, *text, skip=args.skip_evaluation), importance
    )
    seen, fresh = (
        make_reference(model.model, args.calibration, args.length, args.sequences, "fp32", skip)
        for skip in (0, args.sequences)
    )
    table = chosen_table(read_sensitivity_table(args.folder / "sensitivity.tsv"), args.palette, info, "sensitivity.tsv")
    settings = OptimalSettings(
        tuple(args.palette), refine=args.refine, swaps=args.swaps, correct=not args.no_correction
    )
    bench.calibration = windows(args.model, args.calibration, args.length, args.rounding_windows)
    search = OptimalSearch(model, table, settings, QuantizedWeights(importance=tensors), seen, fresh)
    for recipe in args.recipes:
        for name in (recipe, f"{recipe}_imatrix"):
            bench.score(name, "llama.cpp", args.folder / f"{name}.gguf")
        against_recipe(bench, search, f"{recipe}_imatrix")
    for form in () if args.no_uniform else args.palette:
        bench.export(f"uniform-{form}", "uniform", uniform_plan(info, form))
    for path in args.adaptive:
        plan = read_plan(path, info)
        kl, bits = bench.export(path.parent.name, "adaptive", plan), average_bits(plan, info).avg_bits
        ours, _ = search.run(search.budget(bits))
        made = bench.export(f"optimal-{bits:.3f}", "optimal", ours)
        print(f"{bits:.3f} bits: optimal {made.mean():.6f}, {told(path.parent.name, made, kl)}", flush=True)
    for target in args.targets:
        against_others(bench, search, target)
    with open(args.folder / "front.tsv", "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(bench.rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(bench.rows)
    draw(bench.rows, args.folder / "front.svg", f"{args.model.parent.name}: KL of the file against its size")


def show_stages(figures: dict) -> None:
    """Print what the steps after the exact solution gained."""
    for stage in figures["stages"]:
        low, high = stage["interval"]
        print(
            f"    {stage['stage']}: KL {stage['kl_before']:.6f} {stage['kl_change']:+.6f} ({low:+.6f} to {high:+.6f}),"
            f" {'kept' if stage['kept'] else 'not kept'}, {stage['block_forward_tokens']:,} block-forward tokens"
        )


def against_recipe(bench: Bench, search: OptimalSearch, name: str) -> None:
    """Compare the optimal plan of a recipe's size with the recipe's file."""
    file = bench.folder / f"{name}.gguf"
    ((_, budget),) = budgets_of(search, None, file)
    plan, figures = search.run(budget)
    ours = bench.export(f"optimal-{name}", "optimal", plan)
    size = bench.rows[-1]["file_bytes"]
    print(
        f"{name}, {file.stat().st_size:,} bytes: optimal {size:,} bytes KL {ours.mean():.6f}, {told('recipe', ours, bench.by_window[name])}",
        flush=True,
    )
    show_stages(figures)
    against_rounded(bench, f"optimal-{name}", plan)


def against_rounded(bench: Bench, name: str, plan: Plan) -> None:
    """Compare a plan's file with those of the same plan, rounded on the calibration text, and with those of a recipe of its size."""
    for rounding in bench.args.rounding:
        made = bench.rounded(plan, rounding)
        ours = bench.export(f"{name}-{rounding}", f"optimal, {rounding}", made)
        others = [each for each in (name, name.removeprefix("optimal-")) if each in bench.by_window]
        words = "; ".join(
            f"{ours.mean() / bench.by_window[each].mean():.2f} of {told(each, ours, bench.by_window[each])}"
            for each in others
        )
        print(f"    {rounding}: KL {ours.mean():.6f}, {words}", flush=True)
        if bench.args.simulate:
            added = difference(ours, simulated(bench, made))
            print(f"    of it llama.cpp's: {added.mean:+.6f} ({added.low:+.6f} to {added.high:+.6f})", flush=True)


def simulated(bench: Bench, plan: Plan) -> np.ndarray:
    """Return the KL by window of a rounded plan with the file's weights and inputs in float32: without llama.cpp's 8-bit inputs."""
    info = bench.model.info
    table = next(layer.name for layer in info.layers if layer.token_table)
    tied = {layer.name: plan.of(table) for layer in info.layers if layer.tied}
    whole = replace(plan, layers={**plan.layers, **tied})
    scores = score_plan(bench.model.model, info, whole, bench.evaluation, QuantizedWeights())
    return scores.kl.double().mean(dim=1).numpy()


def against_others(bench: Bench, search: OptimalSearch, target: float) -> None:
    """Compare the optimal plan of average bits with random and genetic plans of the same table and budget."""
    budget = search.budget(target)
    plan, figures = search.run(budget)
    ours = bench.export(f"optimal-{target:g}", "optimal", plan)
    others = rivals(bench, search, target, budget, bench.args.draws) if target in bench.args.against else {}
    words = "; ".join(told(how, ours, kl) for how, kl in others.items())
    bits = average_bits(plan, bench.model.info).avg_bits
    print(f"{target:g}: {bits:.4f} bits, optimal {ours.mean():.6f}; {words}", flush=True)
    show_stages(figures)
    against_rounded(bench, f"optimal-{target:g}", plan)


if __name__ == "__main__":
    main()
