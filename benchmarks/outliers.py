"""A model that behaves like a large one: outlier channels in its inputs and heavy-tailed weights, and what each method gives on it.

    python benchmarks/outliers.py [--model demo/model] [--size 64] [--share 0.001] [--folder FOLDER] [--windows 16]

Models from 7B on have channels whose inputs are 20 to 100 times as large as the others', in about 0.1 % of the channels and the same ones in every
block (Dettmers et al. 2022, 2208.07339; Xiao et al. 2022, 2211.10438). Small models have none, so that methods made for them show nothing there.
The copy made here computes the same function: a channel is multiplied by a power of two where it is written (a norm's weight, the rows of v or up)
and divided by it where it is read (the columns of q, k and v, of gate and up, of o, of down). A power of two changes no digit of a weight. Outliers
are made in what norms write, where they were found. All other channels are multiplied by 1/4 to 4, by a Student distribution, which gives weights
and inputs heavy tails. Only models with Llama's names are known.

Prints what the copy is like, and a Markdown table: KL in nats per token on the evaluation text of each method on the model as it is and on the copy,
both simulated. Calibration and evaluation are as many windows of 512 tokens.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from bitplan.evaluate.perplexity import score_plan  # noqa: E402
from bitplan.models.walk import Block, Forward  # noqa: E402
from bitplan.plans.apply import QuantizedWeights  # noqa: E402
from bitplan.plans.plan import Plan, uniform_plan  # noqa: E402
from bitplan.plans.smoothing import SmoothGroup, Smoothing  # noqa: E402
from bitplan.reference.opening import prepare_model  # noqa: E402
from bitplan.reference.reference import make_reference  # noqa: E402
from bitplan.reference.text import windows  # noqa: E402
from bitplan.rounding.model import ModelRounding, round_plan  # noqa: E402
from bitplan.sensitivity.smooth_factors import groups_of  # noqa: E402
from bitplan.statistics.importance import read_importance  # noqa: E402
from bitplan.statistics.inputs import observe_inputs  # noqa: E402

LENGTH = 512
ALPHAS = (0.25, 0.5, 0.75)
TAIL_FREEDOM = 3  # of the Student distribution of the other channels' factors, as powers of two
LARGEST_TAIL = 2  # and their largest exponent


@dataclass(frozen=True)
class Method:
    """How a model is quantized. `smoothing` is SmoothQuant's alpha, `rounding` as in docs/rounding.md."""

    weights: str
    inputs: str = "bf16"
    importance: bool = False
    rounding: str = "nearest"
    smoothing: float | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        formats = self.weights if self.inputs == "bf16" else f"{self.weights}/{self.inputs}"
        how = "importance" if self.importance and self.rounding == "nearest" else self.rounding
        return f"{formats}, {how}" + (f", SmoothQuant {self.smoothing:g}" if self.smoothing is not None else "")


def methods() -> Iterator[Method]:
    """Yield what is compared: weights alone, then weights and inputs."""
    for weights in ("int4", "q3_k", "q4_k", "mxfp4"):
        yield Method(weights)
        if weights.endswith("_k"):
            yield Method(weights, importance=True)
        yield Method(weights, importance=weights.endswith("_k"), rounding="feedback")
    for inputs in ("int8_token", "int4_token"):
        yield Method("int4", inputs)
        yield from (Method("int4", inputs, smoothing=alpha) for alpha in ALPHAS)
        yield Method("int4", inputs, rounding="feedback", smoothing=0.5)
    yield from (Method("int4", "int8_tensor", smoothing=alpha) for alpha in (None, 0.5))
    for pair in (("mxfp4", "mxfp4"), ("mxfp4", "mxfp8"), ("mxfp8", "mxfp8")):
        yield Method(*pair)
        yield Method(*pair, smoothing=0.5)
        yield Method(*pair, rounding="feedback")


def tails(channels: int, generator: torch.Generator) -> Tensor:
    """Return factors (channels,) 2^k, with k rounded from a Student distribution."""
    normal = torch.randn(channels, 1 + TAIL_FREEDOM, generator=generator)
    student = normal[:, 0] / (normal[:, 1:].square().mean(dim=1)).sqrt()
    return (student / 2).round().clamp(-LARGEST_TAIL, LARGEST_TAIL).exp2()


def with_outliers(factors: Tensor, sizes: Tensor, size: float, outliers: Tensor) -> Tensor:
    """Return factors (channels,), powers of two, with which the `outliers` among the channels come to about `size` times the median.

    sizes: root mean square of the channels (channels,).
    """
    median = (sizes * factors).median()
    needed = (size * median / sizes[outliers].clamp(min=1e-12)).log2().round().exp2()
    return factors.index_copy(0, outliers, needed)


class OutlierModel:
    """Scales the channels of a checkpoint's tensors by name, in place. `importance` is mean x^2 of every layer's input columns."""

    def __init__(self, tensors: dict[str, Tensor], importance: Mapping[str, Tensor], share: float, size: float) -> None:
        self.tensors, self.importance, self.size = tensors, importance, size
        self.generator = torch.Generator().manual_seed(0)
        # The same channels in every block, as published.
        hidden = len(importance["model.layers.0.self_attn.q_proj"])
        self.outliers = torch.randperm(hidden, generator=self.generator)[: max(1, round(share * hidden))]

    def scale_written_(self, name: str, factors: Tensor) -> None:
        """Multiply a norm's weight, or the rows of a layer and its bias, by the factors."""
        for end in ("weight", "bias"):
            tensor = self.tensors.get(f"{name}.{end}")
            if tensor is not None:
                tensor.mul_(factors.view(-1, *[1] * (tensor.dim() - 1)).to(tensor.dtype))

    def scale_read_(self, name: str, factors: Tensor) -> None:
        """Divide the columns of a layer by the factors."""
        weight = self.tensors[f"{name}.weight"]
        weight.div_(factors.to(weight.dtype))

    def scale_block_(self, block: str, heads: int, kv_heads: int) -> None:
        """Scale what the norms, v and up write in a block, and what reads it."""
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        for norm, readers in (
            ("input_layernorm", [f"{attention}.{part}_proj" for part in "qkv"]),
            ("post_attention_layernorm", [f"{mlp}.{part}_proj" for part in ("gate", "up")]),
        ):
            sizes = self.importance[readers[0]].sqrt()
            factors = with_outliers(tails(len(sizes), self.generator), sizes, self.size, self.outliers)
            self.scale_written_(f"{block}.{norm}", factors)
            for reader in readers:
                self.scale_read_(reader, factors)
        factors = tails(len(self.importance[f"{mlp}.down_proj"]), self.generator)
        self.scale_written_(f"{mlp}.up_proj", factors)
        self.scale_read_(f"{mlp}.down_proj", factors)
        head = len(self.importance[f"{attention}.o_proj"]) // heads
        factors = tails(kv_heads * head, self.generator)
        self.scale_written_(f"{attention}.v_proj", factors)
        spread = factors.view(kv_heads, 1, head).expand(-1, heads // kv_heads, -1).flatten()
        self.scale_read_(f"{attention}.o_proj", spread)


def make_outlier_model(source: Path, folder: Path, importance: Mapping[str, Tensor], share: float, size: float) -> None:
    """Write the copy of a checkpoint to a folder."""
    model = prepare_model(source, "fp32", "cpu", 1)
    config = model.model.module.config
    shutil.copytree(source, folder)
    tensors = {file: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    made = OutlierModel({k: v for inside in tensors.values() for k, v in inside.items()}, importance, share, size)
    for number in range(len(model.model.blocks)):
        made.scale_block_(f"model.layers.{number}", config.num_attention_heads, config.num_key_value_heads)
    for file, inside in tensors.items():
        save_file(inside, file, {"format": "pt"})


def command(name: str, *flags: object) -> None:
    """Run a command of scripts/; its last words are shown where it fails."""
    line = [sys.executable, str(ROOT / "scripts" / name), *map(str, flags)]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(f"{name} failed:\n{made.stderr[-2000:]}")


class Scored:
    """A model with what the methods need: reference, importance, factors of SmoothQuant, calibration windows."""

    def __init__(self, folder: Path, place: Path, args: argparse.Namespace) -> None:
        self.folder, self.place, self.args = folder, place, args
        place.mkdir(parents=True, exist_ok=True)
        self.model = prepare_model(folder, "fp32", "cpu", args.threads)
        self.reference = make_reference(self.model.model, args.evaluation, LENGTH, args.windows, "fp32")
        self.importance = importance_of(folder, place, args)
        self.calibration = windows(folder, args.calibration, LENGTH, args.windows)

    @cached_property
    def smoothings(self) -> dict[float, Smoothing]:
        """SmoothQuant's factors for each alpha, of every layer's input; one walk serves all."""
        layers = {layer.name: layer for layer in self.model.info.layers}
        groups: dict[float, list[SmoothGroup]] = {alpha: [] for alpha in ALPHAS}

        def visit(block: Block, hidden: Tensor, forward: Forward) -> Tensor:
            with observe_inputs(block, 1) as seen:
                output = forward(hidden)
            for alpha in ALPHAS:
                groups[alpha].extend(groups_of(block, seen, layers, alpha, at_inputs=True))
            return output

        self.model.model.run(self.calibration, visit)
        return {alpha: Smoothing(tuple(made)) for alpha, made in groups.items()}

    def plan(self, method: Method) -> Plan:
        """Return a method's plan, rounded."""
        plan = uniform_plan(self.model.info, method.weights, method.inputs)
        if method.smoothing is not None:
            plan = replace(plan, smoothing=self.smoothings[method.smoothing])
        if method.rounding == "nearest":
            return plan
        folder = Path(tempfile.mkdtemp(dir=self.place)) / "rounded"
        settings = ModelRounding(method.rounding)
        return round_plan(self.model.model, self.model.info, plan, self.calibration, settings, folder)[0]

    def kl(self, method: Method) -> float:
        """Return the mean KL of a method in nats per token."""
        weights = QuantizedWeights(limit=0, importance=self.importance if method.importance else {})
        scores = score_plan(self.model.model, self.model.info, self.plan(method), self.reference, weights)
        return scores.kl.double().mean().item()

    def tells(self) -> str:
        """Return what inputs and weights are like: the largest channel against the median one, and the weights' kurtosis."""
        ratios = [values.sqrt().max() / values.sqrt().median() for values in self.importance.values()]
        names = [f"{layer.name}.weight" for layer in self.model.info.quantizable]
        weights = [self.model.checkpoint.read([name], torch.float32)[name].flatten() for name in names]
        kurtosis = [((w - w.mean()) / w.std()).pow(4).mean().item() for w in weights]
        middle = sorted(ratios)[len(ratios) // 2]
        return (
            f"largest channel of a layer's input, in medians: {min(ratios):.1f} to {max(ratios):.1f} (middle {middle:.1f}); "
            f"kurtosis of weights: {min(kurtosis):.1f} to {max(kurtosis):.1f} (mean {sum(kurtosis) / len(kurtosis):.1f})"
        )


def importance_of(model: Path, place: Path, args: argparse.Namespace) -> dict[str, Tensor]:
    """Return mean x^2 of every layer's input columns on the calibration text, kept in `place`."""
    file = place / "layer_stats.safetensors"
    if not file.exists():
        flags = (
            "--calibration",
            args.calibration,
            "--length",
            LENGTH,
            "--sequences",
            args.windows,
            "--importance",
            file,
        )
        command("layer_stats.py", "--model", model, *flags, "--output", place / "layer_stats.tsv")
    return read_importance(file, prepare_model(model, "fp32", "cpu", 1).info.quantizable)


def run(place: Path, args: argparse.Namespace) -> None:
    """Make the copy and print the table, a line at a time."""
    plain = Scored(args.model, place / "plain", args)
    if not (place / "model").exists():
        make_outlier_model(args.model, place / "model", plain.importance, args.share, args.size)
    changed = Scored(place / "model", place / "outliers", args)
    same = (changed.reference.hidden - plain.reference.hidden).abs().max() / plain.reference.hidden.abs().max()
    print(
        f"As it is: {plain.tells()}\nWith outliers: {changed.tells()}\nFinal states differ by {same:.1e} of the largest.\n"
    )
    print("| method | KL as it is | KL with outliers | ratio |\n|---|---|---|---|")
    for method in methods():
        before, after = plain.kl(method), changed.kl(method)
        print(f"| {method.name} | {before:.5f} | {after:.5f} | {after / before:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--calibration", type=Path, default=ROOT / "demo" / "calibration.txt")
    parser.add_argument("--evaluation", type=Path, default=ROOT / "demo" / "evaluation.txt")
    parser.add_argument(
        "--share", type=float, default=0.001, help="share of the channels that are outliers, at least one"
    )
    parser.add_argument("--size", type=float, default=64.0, help="their size in medians, to the next power of two")
    parser.add_argument("--windows", type=int, default=16, help="windows of calibration and of evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where to keep the copy and what is measured; a temporary folder by default"
    )
    args = parser.parse_args()
    if args.folder:
        run(args.folder, args)
        return
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), args)


if __name__ == "__main__":
    main()
