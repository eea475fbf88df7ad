"""Plans: one format per layer. Reads and writes `config.json` and `plan.json`, expands patterns, counts bits."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.core.files import read_json, write_folder_aside, write_json
from bitplan.formats.base import Format
from bitplan.formats.facts import UNQUANTIZED
from bitplan.formats.fitting import fitting_format
from bitplan.formats.importance import check_importance
from bitplan.formats.table import IN_PLANS, PER_CHANNEL
from bitplan.models.layer_patterns import match_layers
from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.compressed import FOLDER as COMPRESSED
from bitplan.plans.compressed import Compressed, read_compressed
from bitplan.plans.config_check import NOTES, SEARCH_SUMMARY, SUMMARY, check_config
from bitplan.plans.fitting import fit_layers, warn_of_plan
from bitplan.plans.layer_plan import UNQUANTIZED_BITS as UNQUANTIZED_BITS
from bitplan.plans.layer_plan import LayerPlan as LayerPlan
from bitplan.plans.layer_plan import formats_of
from bitplan.plans.rounded import FOLDER as ROUNDED
from bitplan.plans.rounded import RoundedModel, read_rounded
from bitplan.plans.smoothing import Smoothing, read_smoothing, smoothing_path, write_smoothing


@dataclass(frozen=True)
class Plan:
    """The formats of each layer of a model, in model order.

    `summary` describes the search; `smoothing` is applied before quantization; `compressed` has the weights of layers in the
    format `per_channel`, `rounded` those of layers that were already rounded (scripts/round_model.py).
    """

    layers: Mapping[str, LayerPlan]
    summary: Mapping[str, Any] = field(default_factory=dict)
    smoothing: Smoothing | None = None
    compressed: Compressed | None = None
    rounded: RoundedModel | None = None

    def of(self, layer: str) -> LayerPlan:
        """Return the layer's formats; 16 bits if the plan does not name it."""
        return self.layers.get(layer, LayerPlan())

    def embeddings(self, info: ModelInfo) -> tuple[Layer, ...]:
        """Return the token embedding and the output matrix if the plan quantizes them; both for a tied model."""
        named = (layer for layer in info.layers if layer.is_embedding)
        return tuple(layer for layer in named if self.of(layer.name).embeddings and self.of(layer.name).weights_change)

    def counts(self, info: ModelInfo) -> dict[str, int]:
        """Return {weight format: number of quantizable layers}, largest first."""
        return dict(Counter(self.of(layer.name).wq for layer in info.quantizable).most_common())


def _layer_plan(entry: Mapping[str, Any]) -> LayerPlan:
    notes = {key: entry[key] for key in NOTES if key in entry}
    if entry.get("skip"):
        return LayerPlan(notes=notes)
    formats = (entry.get("wq", UNQUANTIZED), entry.get("aq", UNQUANTIZED))
    return LayerPlan(*formats, entry.get("group_size"), notes, entry.get("stored_bits"), entry.get("embeddings", False))


def with_tied_output(chosen: Mapping[str, LayerPlan], layers: Sequence[Layer], source: str) -> dict[str, LayerPlan]:
    """Return the plans of layers with the embedding's for a tied output matrix. Raises `UserError` if it requests a different one."""
    table = next((layer.name for layer in layers if layer.token_table), None)
    output = next((layer.name for layer in layers if layer.tied), None)
    if table is None or output is None:
        return dict(chosen)
    shared, own = chosen[table], chosen[output]
    if own.embeddings and own != shared:
        what = f"is set to {own.wq}, but {table}, which is the same matrix, to {shared.wq}"
        raise user_error(
            "PLAN-TIED-OUTPUT", f"{source}: {output}", what, f"Remove it: the format of {table} applies to both"
        )
    return {**chosen, output: replace(shared, notes=own.notes)}


def expand(
    config: Mapping[str, Any],
    layers: Iterable[Layer],
    source: str = "config",
    formats: Mapping[str, Format] = IN_PLANS,
) -> Plan:
    """Return the plan of a configuration: each layer takes the last override whose pattern matches its name.

    Patterns follow `models/layer_patterns.py`. Protected layers stay at 16 bits, unless the last match is an entry with
    `embeddings`, which does not inherit from the default. A tied output matrix has the embedding's format. A layer whose rows do
    not fit its format gets a substitute, with a warning. Raises `UserError` with all unknown keys and formats and all patterns
    that match no layer.
    """
    layers = tuple(layers)
    names = [layer.name for layer in layers]
    check_config(source, config, layers, formats)
    default = config.get("default", {})
    chosen = {layer.name: _layer_plan(default) for layer in layers}
    for entry in config.get("overrides", []):
        whole = entry if entry.get("embeddings") else {**default, **entry}
        chosen.update({names[place]: _layer_plan(whole) for place in match_layers(entry["pattern"], names)})
    for layer in layers:
        if layer.protected and not chosen[layer.name].embeddings:
            chosen[layer.name] = LayerPlan(notes=chosen[layer.name].notes)
    chosen = with_tied_output(chosen, layers, source)
    warn_of_plan(source, chosen, layers)
    return Plan(fit_layers(chosen, layers), _summary_in(config))


def _summary_in(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config.json or plan.json says about how it was searched; nothing where it says nothing."""
    return config.get(SUMMARY) or config.get(SEARCH_SUMMARY) or {}


def read_plan(path: Path, info: ModelInfo, formats: Mapping[str, Format] = IN_PLANS) -> Plan:
    """Return the plan in a config.json or plan.json, expanded over the model's layers. Raises `UserError`."""
    config = read_json(path)
    fingerprint = config.get("model_fingerprint")
    if fingerprint and fingerprint != info.fingerprint:
        raise user_error(
            "PLAN-OTHER-MODEL",
            path,
            "was created for a different model",
            "Run the search again, or remove model_fingerprint to use it anyway",
        )
    plan = expand(config, info.layers, str(path), formats)
    if "smoothing" in config:
        plan = replace(plan, smoothing=read_smoothing(smoothing_path(path), config["smoothing"]["sha256"]))
    plan = replace(plan, compressed=_read_compressed_layers(path, config, plan))
    return replace(plan, rounded=_read_rounded_layers(path, config, plan, info, formats))


def _read_rounded_layers(
    path: Path, config: Mapping[str, Any], plan: Plan, info: ModelInfo, formats: Mapping[str, Format]
) -> RoundedModel | None:
    """Return the rounded layers stored with a plan. Raises `UserError` if one has a different format than in the plan."""
    if "rounded" not in config:
        return None
    record = config["rounded"]
    rounded = read_rounded(Path(path).parent / ROUNDED, record["sha256"], str(record.get("rounding", "")))
    choices = {layer.name: plan.of(layer.name) for layer in info.quantizable}
    rounded.check(
        path, {name: (choice.wq, formats[choice.wq].group(choice.group_size)) for name, choice in choices.items()}
    )
    return rounded


def _read_compressed_layers(path: Path, config: Mapping[str, Any], plan: Plan) -> Compressed | None:
    """Return the compressed layers stored with a plan. Raises `UserError` if a layer in the format `per_channel` is missing."""
    channelled = [name for name, choice in plan.layers.items() if choice.wq == PER_CHANNEL]
    if "compressed" not in config and not channelled:
        return None
    compressed = read_compressed(Path(path).parent / COMPRESSED, config.get("compressed", {}).get("sha256"))
    absent = [name for name in channelled if name not in compressed.files]
    if absent:
        raise user_error(
            "COMPRESSED-INCOMPLETE",
            compressed.folder,
            f"lacks {absent[0]}",
            "Run the search again or copy the folder written with the plan",
        )
    return compressed


def uniform_plan(info: ModelInfo, wq: str, aq: str = UNQUANTIZED, group_size: int | None = None) -> Plan:
    """Return the plan with the same formats for all quantizable layers, or substitutes that fit their rows."""
    chosen = {layer.name: LayerPlan() if layer.protected else LayerPlan(wq, aq, group_size) for layer in info.layers}
    return Plan(fit_layers(chosen, info.layers))


def write_config(path: Path, plan: Plan, default: LayerPlan, info: ModelInfo, summary_key: str = SUMMARY) -> None:
    """Write a config.json: the default, an override for each layer that differs from it, and the summary."""
    overrides = [
        {"pattern": name, **choice.to_json()}
        for name, choice in plan.layers.items()
        if choice != default or _protected(info, name)
    ]
    _write(path, default, overrides, plan, info, summary_key)


def write_plan(path: Path, plan: Plan, default: LayerPlan, info: ModelInfo) -> None:
    """Write a plan.json: the same schema with one record per layer, in model order."""
    records = [{"pattern": layer.name, **plan.of(layer.name).to_json()} for layer in info.layers]
    _write(path, default, records, plan, info)


def _protected(info: ModelInfo, name: str) -> bool:
    return any(layer.name == name and layer.protected for layer in info.layers)


def _write(
    path: Path, default: LayerPlan, overrides: list[dict], plan: Plan, info: ModelInfo, summary_key: str = SUMMARY
) -> None:
    content = {
        "default": formats_of(default),
        "overrides": overrides,
        summary_key: dict(plan.summary),
        "model_fingerprint": info.fingerprint,
    }
    if plan.compressed is not None:
        _copy_weights(Path(path).parent / COMPRESSED, plan.compressed)
        content["compressed"] = {"sha256": plan.compressed.digest}
    if plan.rounded is not None:
        _copy_weights(Path(path).parent / ROUNDED, plan.rounded)
        content["rounded"] = {"sha256": plan.rounded.digest, "rounding": plan.rounded.rounding}
    if plan.smoothing is not None:
        write_smoothing(smoothing_path(path), plan.smoothing)
        content["smoothing"] = {"alphas": plan.smoothing.alphas, "sha256": plan.smoothing.digest}
    write_json(path, content)


def _copy_weights(place: Path, weights: Compressed | RoundedModel) -> None:
    """Copy the folder of compressed or rounded layers to `place` next to a plan, unless it is already there."""
    if place.resolve() == weights.folder.resolve():
        return
    if place.is_dir():
        read_compressed(place, weights.digest)  # the folder of another plan is not replaced
        return
    with write_folder_aside(place) as aside:
        shutil.copytree(weights.folder, aside, dirs_exist_ok=True)


@dataclass(frozen=True)
class Bits:
    """Average bits of a plan over all parameters (tied ones once) and over the quantizable layers, including scales."""

    avg_bits: float
    avg_bits_layers: float


def layer_bits(layer: Layer, choice: LayerPlan, formats: Mapping[str, Format] = IN_PLANS) -> float:
    """Return the stored size of a layer in bits, including scales."""
    return (
        choice.stored_bits
        if choice.stored_bits is not None
        else formats[choice.wq].bits_of(layer.shape, choice.group_size)
    )


def average_bits(plan: Plan, info: ModelInfo, formats: Mapping[str, Format] = IN_PLANS) -> Bits:
    """Return the average bits of a plan. Parameters outside blocks count 16 bits, unless the plan quantizes embedding or output."""
    embeddings = [layer for layer in plan.embeddings(info) if not layer.tied]
    quantizable = sum(layer.params for layer in info.quantizable)
    unquantized = info.parameters - quantizable - sum(layer.params for layer in embeddings)
    stored, embedding_bits = (
        sum(layer_bits(layer, plan.of(layer.name), formats) for layer in layers)
        for layers in (info.quantizable, embeddings)
    )
    return Bits((stored + embedding_bits + UNQUANTIZED_BITS * unquantized) / info.parameters, stored / quantizable)


def check_plan_importance(plan: Plan, info: ModelInfo, importance: Mapping[str, Any]) -> None:
    """Raise `UserError` that names the formats of layers which need an importance matrix if `importance` has none.

    Rounded layers have their codes already.
    """
    rounded = plan.rounded if plan.rounded is not None else ()
    quantized = (plan.of(layer.name).wq for layer in info.quantizable if layer.name not in rounded)
    check_importance(quantized, bool(importance))


def check_columns(plan: Plan, info: ModelInfo, formats: Mapping[str, Format] = IN_PLANS) -> None:
    """Raise `UserError` for every layer whose rows are not a multiple of its format's fixed block, with a format that fits.

    Plans that are read or searched have no such layers (`fit_layers`); they occur only with custom formats and in plans
    constructed in code.
    """
    problems = []
    for layer in (*info.quantizable, *(layer for layer in plan.embeddings(info) if not layer.tied)):
        form, columns = formats[plan.of(layer.name).wq], layer.shape[1]
        if form.fixed_block and columns % form.block:
            what = f"its {columns} columns are not a multiple of {form.name}'s block of {form.block}"
            fits = (used for name in (form.name, "q8_0") if (used := fitting_format(name, columns)) != form.name)
            problems.append(
                Problem("FORMAT-COLUMNS", layer.name, what, f"Use {next(fits)} or a format without a fixed block")
            )
    if problems:
        raise UserError(problems)
