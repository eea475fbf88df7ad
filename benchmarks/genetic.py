"""The genetic search against the exact optimum and against chance, at the same size: fitness over 20 seeds, and measured KL.

    python benchmarks/genetic.py [--model demo/model --text demo/calibration.txt --evaluation demo/evaluation.txt]

First W4 with A4 or A8 at a compression of 0.75, then a palette of weight formats at some average bits over the layers. KL is on the
evaluation text; "random" is the mean over 10 plans drawn by lot and brought to that size.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402

from bitplan.evaluate.perplexity import score_plan  # noqa: E402
from bitplan.evaluate.scores import summarize  # noqa: E402
from bitplan.plans.apply import QuantizedWeights  # noqa: E402
from bitplan.plans.plan import UNQUANTIZED_BITS  # noqa: E402
from bitplan.reference.opening import prepare_model  # noqa: E402
from bitplan.reference.reference import make_reference  # noqa: E402
from bitplan.search.genetic.algorithm import GeneticSettings  # noqa: E402
from bitplan.search.genetic.rows import sensitivity_of  # noqa: E402
from bitplan.search.genetic.run import Target, budget_of, genetic_plan, plan_of  # noqa: E402
from bitplan.search.knapsack.choices import total_size  # noqa: E402
from bitplan.sensitivity.local_errors import Choice, SensitivitySettings, activation_choices, measure_sensitivity  # noqa: E402

SCOPE = "tensor"
SEEDS = 20
DRAWS = 10


def random_choices(found, budget: float, count: int) -> list[np.ndarray]:
    """Return choice vectors drawn by lot, stepped down at random places until it holds the budget, then up where it can."""
    rng, made = np.random.default_rng(0), []
    order = found.choices.size.argsort(axis=1)
    layers = np.arange(len(order))
    while len(made) < count:
        place = rng.integers(order.shape[1], size=len(order))
        while total_size(found.choices, order[layers, place]) > budget:
            layer = rng.integers(len(order))
            place[layer] = max(0, place[layer] - 1)
        for layer in rng.permutation(len(order)):
            more = place.copy()
            more[layer] = min(order.shape[1] - 1, more[layer] + 1)
            place = more if total_size(found.choices, order[layers, more]) <= budget else place
        made.append(order[layers, place])
    return made


def compare(model, table, smoothing, reference, target: Target, title: str) -> None:
    """Print gap and KL of the three ways under a target."""
    kl, weights = {}, QuantizedWeights()

    def damage(plan) -> float:
        return summarize(score_plan(model.model, model.info, plan, reference, weights))["kl_mean"]

    started = time.perf_counter()
    runs = [
        genetic_plan(table, smoothing, model.info, target, SCOPE, GeneticSettings(seed=seed)) for seed in range(SEEDS)
    ]
    searched = (time.perf_counter() - started) / SEEDS
    gaps = [plan.summary["gap"] for plan, _ in runs]
    found = runs[0][1]
    kl["genetic"] = [damage(plan) for plan, _ in runs[:5]]
    exact, _ = genetic_plan(table, smoothing, model.info, target, SCOPE, GeneticSettings(), use_exact=True)
    kl["exact"] = [damage(exact)]
    drawn = random_choices(found, budget_of(target, model.info), DRAWS)
    kl["random"] = [damage(plan_of(found, choice, model.info, target, SCOPE, smoothing)) for choice in drawn]
    means = ", ".join(f"{name} {statistics.mean(values):.6f}" for name, values in kl.items())
    print(
        f"{title}: gap over {SEEDS} seeds mean {100 * statistics.mean(gaps):.3f} %, max {100 * max(gaps):.3f} %;"
        f" KL {means}; best random {min(kl['random']):.6f}; {searched:.3f} s a search",
        flush=True,
    )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", type=Path, default=ROOT / "demo/model")
    flags.add_argument("--text", type=Path, default=ROOT / "demo/calibration.txt")
    flags.add_argument("--evaluation", type=Path, default=ROOT / "demo/evaluation.txt")
    flags.add_argument("--palette", nargs="+", default=["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"])
    flags.add_argument("--bits", nargs="+", type=float, default=[4.0, 5.0, 6.0], help="average bits over the layers")
    flags.add_argument("--sequences", type=int, default=16)
    flags.add_argument("--threads", type=int, default=1)
    args = flags.parse_args()
    model = prepare_model(args.model, "fp32", "cpu", args.threads)
    calibration = make_reference(model.model, args.text, 512, args.sequences, "fp32")
    reference = make_reference(model.model, args.evaluation, 512, args.sequences, "fp32")
    settings = SensitivitySettings((*activation_choices(SCOPE), *map(Choice, args.palette)), (0.5,))
    started = time.perf_counter()
    rows, smoothing = measure_sensitivity(model.model, model.info, calibration.tokens, settings)
    print(f"sensitivity of {len(rows)} rows: {time.perf_counter() - started:.1f} s", flush=True)
    table = sensitivity_of(rows)
    for compression in (0.7, 0.75, 0.85):
        compare(model, table, smoothing, reference, Target(compression), f"W4 A4/A8 at {compression}")
    inside = sum(layer.params for layer in model.info.quantizable)
    target = Target(palette=tuple(args.palette))
    for bits in args.bits:
        whole = (bits * inside + UNQUANTIZED_BITS * (model.info.parameters - inside)) / model.info.parameters
        for metric in ("mse", "relative_mse", "weighted_error"):
            sized = replace(target, avg_bits=whole, metric=metric)
            compare(model, table, smoothing, reference, sized, f"palette at {bits} bits, {metric}")


if __name__ == "__main__":
    main()
