"""Compressing a model from its files to its results: plan, compressed layers, checkpoint, statistics, scores."""

import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bitplan.core.errors import UserError, user_error
from bitplan.core.files import read_json, temporary_folder, write_table
from bitplan.core.provenance import write_provenance
from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.compressed import FOLDER, LISTED
from bitplan.plans.plan import LayerPlan, Plan, write_config, write_plan
from bitplan.reference.opening import PreparedModel
from bitplan.reference.reference import load_reference, make_reference
from bitplan.reference.text import text_digest
from bitplan.runtimes.transformers.checkpoint import write_checkpoint
from bitplan.search.sparsegpt.channel_plan import channel_plan
from bitplan.search.sparsegpt.model import STATISTICS, CompressedModel, compress_model
from bitplan.search.sparsegpt.settings import ModelSettings


def held_out_range(model: PreparedModel, dataset: str, evaluation: Path | None) -> int:
    """Return how many tokens of the evaluation text come before those that are held out: 0 where it is another text.

    Raises `UserError` where the windows that are compressed on are drawn from all of it.
    """
    if evaluation is None or not Path(dataset).exists():
        return 0
    if Path(dataset).suffix == ".safetensors":
        seen = load_reference(Path(dataset), model.checkpoint, model.info.fingerprint).source
        same = seen is not None and seen.sha256 == text_digest(evaluation)
        return seen.stop if same else 0
    if text_digest(Path(dataset)) == text_digest(evaluation):
        what = "is the calibration text, whose windows are drawn from all of it, so nothing of it is held out"
        raise user_error(f"--evaluation {evaluation}", what, "Give another text")
    return 0


def _place(config: Path | None, plan: Path | None) -> Path | None:
    """Return the folder of the plan's files. Raises `UserError` for two: the compressed layers stand beside both."""
    parents = {path.absolute().parent for path in (config, plan) if path is not None}
    if len(parents) > 1:
        what = "stand in two folders, and the compressed layers stand beside both"
        raise user_error("--output-config and --output-plan", what, "Give them the same folder")
    return next(iter(parents), None)


def _refuse_another_plans(place: Path, outputs: Iterable[Path | None]) -> None:
    """Raise `UserError` where the folder of compressed layers belongs to a plan that is not written again: it would be replaced."""
    own = {path.absolute().name for path in outputs if path is not None}
    listed = place / FOLDER / LISTED
    digest = _told(listed).get("sha256") if listed.is_file() else None
    others = (path for path in sorted(place.glob("*.json")) if path.name not in own)
    owner = next((path for path in others if digest and _digest_of(path) == digest), None)
    if owner is not None:
        what = f"belongs to {owner.name}, and would be replaced"
        raise user_error(place / FOLDER, what, "Give each SparseGPT plan a folder of its own, or remove that plan")


def _told(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; nothing for what is none."""
    try:
        return read_json(path)
    except UserError:
        return {}


def _digest_of(plan: Path) -> str | None:
    """Return the digest of the compressed layers that a plan has; None for other files."""
    compressed = _told(plan).get("compressed")
    return compressed.get("sha256") if isinstance(compressed, dict) else None


@contextmanager
def compressed_plan(
    model: PreparedModel,
    tokens: Tensor,
    settings: ModelSettings,
    config: Path | None,
    plan: Path | None,
    save: Path | None,
) -> Iterator[tuple[CompressedModel, Plan]]:
    """Yield the compressed model and its plan; without a place for plans the layers are kept until the context ends."""
    place = _place(config, plan)
    if place is not None:
        _refuse_another_plans(place, (config, plan))
    beside = Path(tempfile.gettempdir()) if save is None else save.absolute().parent
    with temporary_folder(place or beside) as aside:
        folder = (place or aside) / FOLDER
        made = compress_model(model.model, model.info, tokens, settings, model.dtype, folder)
        # Each block is run twice, for the moments and for its outputs. A run that goes on with another's blocks costs less, and
        # is to write the same.
        cost = {"block_forward_tokens": 2 * len(model.model.blocks) * tokens.numel()}
        yield made, channel_plan(made, model.info, settings, cost)


def write_results(model: PreparedModel, made: CompressedModel, plan: Plan, args: Namespace, started: float) -> None:
    """Write what the flags ask for: config.json, plan.json, statistics, checkpoint."""
    default = LayerPlan()
    if args.output_config:
        write_config(args.output_config, plan, default, model.info, "search_summary")
    if args.output_plan:
        write_plan(args.output_plan, plan, default, model.info, "search_summary")
    if args.output_stats:
        write_table(args.output_stats, made.rows, STATISTICS)
    if args.save:
        done = write_checkpoint(args.save, model.checkpoint, model.info, plan, QuantizedWeights(limit=0))
        write_plan(args.save / "bitplan" / "plan.json", plan, default, model.info, "search_summary")
        print(f"{args.save}: {done['changed']} weights changed, {done['bytes']:,} bytes")
    written = args.output_plan or args.output_config or args.save
    if written:
        write_provenance(written, started)
    summary = plan.summary
    print(f"sparsity {summary['sparsity']:.4f}, mean width of the channels {summary['mean_channel_bits']:.4f} bits")
    for how, told in (("dense", "every code is stored"), ("bitmap", "a bitmap of what is pruned, and the other codes")):
        over_all, layers = summary[f"avg_bits_{how}"], summary[f"avg_bits_layers_{how}"]
        print(f"avg_bits {over_all:.4f}, avg_bits_layers {layers:.4f} where {told}; scales and widths count")


def print_scores(model: PreparedModel, plan: Plan, text: Path | None, length: int, skip: int = 0) -> None:
    """Print perplexity and KL of the compressed model on a text after its first `skip` tokens, if one was given."""
    if text is None:
        return
    reference = make_reference(model.model, text, length, None, model.dtype, skip)
    figures = summarize(score_plan(model.model, model.info, plan, reference, QuantizedWeights(limit=0)))
    print(f"perplexity {figures['ppl']:.4f} (full precision {figures['base_ppl']:.4f}) on {figures['tokens']} tokens")
    print(f"KL {figures['kl_mean']:.6f} nats per token, top-1 agreement {100 * figures['top1_agreement']:.2f} %")
