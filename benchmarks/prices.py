"""Prices against measured KL: how well they order layers, what they sum to, what they cost, and the plans that each table gives.

    python benchmarks/prices.py [--model demo/model] [--draws 8 16] [--bits 3 3.5 4 5 6] [--threads 1]
    python benchmarks/prices.py --model FOLDER --calibration TEXT --evaluation TEXT --palette mxfp4/mxfp4 mxfp8/mxfp8 bf16 --bits 4.5 5 6

Both tables are made in this process on the same windows. Plans are the least sum for average bits over the layers, each layer by itself, and are
scored on the evaluation text with weights and inputs rounded; their KL is compared with that of the measured table's plan, paired by window.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
PALETTE = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")


class Compared:
    """A model, its texts and a palette, of which tables are made and plans scored."""

    def __init__(self, args: argparse.Namespace) -> None:
        from bitplan.plans.apply import QuantizedWeights
        from bitplan.reference.opening import prepare_model
        from bitplan.reference.reference import make_reference
        from bitplan.reference.text import windows
        from bitplan.sensitivity.local_errors import choice_named
        from bitplan.statistics.importance import read_importance

        self.model = prepare_model(args.model, "fp32", "cpu", args.threads)
        self.tokens = windows(args.model, args.calibration, args.length, args.sequences)
        self.choices = tuple(map(choice_named, args.palette))
        self.importance = read_importance(args.imatrix, self.model.info.quantizable)
        self.weights = QuantizedWeights(importance=self.importance)
        self.fresh = make_reference(self.model.model, args.evaluation, args.length, args.windows, "fp32")

    def table(self, folder: Path, name: str, measure) -> Path:
        """Make a table, print its cost, and return its place."""
        from bitplan.sensitivity.local_errors import SensitivitySettings
        from bitplan.sensitivity.measure import measure_table
        from bitplan.sensitivity.run import write_sensitivity

        path = folder / f"{name}.tsv"
        settings = SensitivitySettings(self.choices)
        made = measure_table(self.model, self.tokens, settings, measure, path, importance=self.importance)
        write_sensitivity(path, made.rows, made.smoothing)
        print(f"{name}: {made.block_forwards:.0f} block-forwards over {self.tokens.numel()} tokens", flush=True)
        return path

    def kld_of_plans(self, path: Path, bits: list[float]) -> dict[float, tuple]:
        """Return by target the plan's average bits and its KL in each window of the evaluation text."""
        from dataclasses import astuple

        from bitplan.evaluate.perplexity import score_plan
        from bitplan.formats.pairs import parse_pair
        from bitplan.plans.plan import LayerPlan, Plan
        from bitplan.search.allocation.constraints import Constraints
        from bitplan.search.allocation.problem import AVG_BITS, Target, allocate, allocation_problem
        from bitplan.sensitivity.table import of_palette, read_sensitivity_table

        palette = [choice.name for choice in self.choices]
        problem = allocation_problem(of_palette(read_sensitivity_table(path, palette), palette), Constraints())
        found = {}
        for made in allocate(problem, [Target(AVG_BITS, each) for each in bits]):
            plan = Plan({name: LayerPlan(*astuple(parse_pair(form))) for name, form in made.plan.items()})
            scores = score_plan(self.model.model, self.model.info, plan, self.fresh, self.weights)
            found[made.target.limit] = (made.avg_bits_layers, scores.kl.double().mean(1))
        return found


def agreement(measured: Path, priced: Path) -> None:
    """Print by candidate Kendall's tau of the prices with measured KL, and the sum of the ones over that of the others."""
    from scipy.stats import kendalltau

    from bitplan.core.files import read_table

    kinds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for known, row in zip(read_table(measured), read_table(priced), strict=True):
        if known["kld_from"] == "measured":
            kinds.setdefault((row["format"], row["inputs"]), []).append((float(row["price"]), float(known["kld"])))
    taus = {}
    for kind, pairs in kinds.items():
        prices, klds = zip(*pairs, strict=True)
        taus[kind] = kendalltau(prices, klds).statistic
        print(f"  {'/'.join(kind):<24} tau {taus[kind]:.3f}   sum {sum(prices) / sum(klds):.3f}")
    print(f"  {'mean':<24} tau {sum(taus.values()) / len(taus):.3f}", flush=True)


def interval(found) -> str:
    """Return a difference with its interval in words."""
    return f"{found.mean:+.5f} ({found.low:+.5f} to {found.high:+.5f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--calibration", type=Path, default=ROOT / "demo" / "calibration.txt")
    parser.add_argument("--evaluation", type=Path, default=ROOT / "demo" / "evaluation.txt")
    parser.add_argument("--imatrix", type=Path, help="importance matrix: the safetensors beside layer_stats.tsv")
    parser.add_argument("--palette", nargs="+", default=PALETTE)
    parser.add_argument("--draws", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--bits", type=float, nargs="+", default=[3, 3.5, 4, 5, 6])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--windows", type=int, default=32, help="windows of the evaluation text")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    from bitplan.search.optimal.paired import difference
    from bitplan.sensitivity.candidates import MeasureSettings

    compared = Compared(args)
    with tempfile.TemporaryDirectory() as folder:
        measured = compared.table(Path(folder), "measured", MeasureSettings("all"))
        base = compared.kld_of_plans(measured, args.bits)
        for bits, (average, kld) in base.items():
            print(f"  {bits:g} bits: {average:.3f}, KL {kld.mean():.5f}", flush=True)
        for draws in args.draws:
            priced = compared.table(Path(folder), f"priced-{draws}", MeasureSettings(draws=draws))
            agreement(measured, priced)
            for bits, (average, kld) in compared.kld_of_plans(priced, args.bits).items():
                found = difference(kld, base[bits][1])
                print(f"  {bits:g} bits: {average:.3f}, KL {kld.mean():.5f}, {interval(found)}", flush=True)


if __name__ == "__main__":
    main()
