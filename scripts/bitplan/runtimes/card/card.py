"""The model card of an exported plan, from its report, its scores and what its model says of itself."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import read_json, write_aside
from bitplan.core.intervals import half_width
from bitplan.models.layers import ModelInfo
from bitplan.plans.fitting import substituted
from bitplan.plans.plan import Plan, average_bits
from bitplan.runtimes.card.source import Source, source_of

TEMPLATE = "card.md.j2"
# What a report.json holds for the card, and a perplexity.json.
OF_A_REPORT = ("runtime", "plan", "name", "how_to_run", "command", "versions")
OF_SCORES = ("scored", "kl_mean", "ppl", "base_ppl", "top1_agreement", "tokens", "windows")


@dataclass(frozen=True)
class Card:
    """What a card shows. `report` is a report.json, `scores` a perplexity.json or None, `digests` SHA-256 by what they are of.

    `substituted` says which layers have a substitute for their format; `warnings` are what the steps warned of. A card that stands `alone` lies
    beside a copy of the file: report and plan are elsewhere.
    """

    source: Source
    fingerprint: str
    method: str
    plan_bits: float
    report: Mapping[str, Any]
    scores: Mapping[str, Any] | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    substituted: str = ""
    warnings: Sequence[str] = ()
    alone: bool = False

    @property
    def base(self) -> str:
        """The base model's id on the hub, else the name that the export has for it."""
        return self.source.id or str(self.report.get("model") or self.source.name)

    @property
    def tags(self) -> list[str]:
        """The words by which a hub finds the model."""
        names = (self.report["runtime"].replace("_", "-"), "bitplan", "quantized", self.method)
        return [name for name in names if name]

    @property
    def changes(self) -> str:
        """Why layers are stored in another type than the plan's format, and how many for each reason, where the report says."""
        rows = [row for row in self.report.get("tensors", ()) if row.get("layer") and row.get("why")]
        return "; ".join(f"{why} ({number})" for why, number in Counter(row["why"] for row in rows).most_common())

    @property
    def types(self) -> str:
        """How many tensors are stored in which type, as "12 x Q4_K, 2 x F16"."""
        return ", ".join(f"{number} x {kind}" for kind, number in sorted(self.report.get("types", {}).items()))


def check_report(path: Path, report: Mapping[str, Any]) -> None:
    """Raise `UserError` for a report.json without what its card shows."""
    _check(path, report, OF_A_REPORT, "Export the plan again with scripts/export_plan.py")


def read_scores(path: Path | None) -> dict[str, Any] | None:
    """Return a perplexity.json; None without a path. Raises `UserError` for one that compares with no reference."""
    if path is None:
        return None
    scores = read_json(path)
    _check(path, scores, OF_SCORES, "Create it with scripts/perplexity.py --plan or --artifact")
    return scores


def _check(path: Path, content: Mapping[str, Any], keys: Sequence[str], hint: str) -> None:
    absent = [key for key in keys if content.get(key) is None]
    if absent:
        raise user_error("CARD-NO-FIGURE", path, f"has no {absent[0]}, which a model card shows", hint)


def figure(scores: Mapping[str, Any], key: str) -> str:
    """Return a figure of a perplexity.json with its 95 % interval over windows, where it has an error."""
    error = scores.get(f"{key}_error")
    return f"{scores[key]:.5g}" + ("" if error is None else f" ± {half_width(error):.2g}")


def card_text(card: Card) -> str:
    """Return the card in Markdown, with the front matter that the model hub reads."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(TEMPLATE).render(card=card, report=card.report, figure=figure) + "\n"


def make_card(
    info: ModelInfo,
    plan: tuple[Path, Plan],
    report: Mapping[str, Any],
    scores: Mapping[str, Any] | None = None,
    calibration: Path | None = None,
) -> Card:
    """Return the card of an export with its report; `plan` is a plan with its file, `scores` a perplexity.json, `calibration` the text behind the plan."""
    path, content = plan
    files = {"plan": path, "calibration text": calibration}
    digests = {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file}
    source, method = source_of(Path(info.path)), str(content.summary.get("method", ""))
    bits, unfit = average_bits(content, info).avg_bits, substituted(content.layers, info.layers)
    return Card(source, info.fingerprint, method, bits, report, scores, digests, unfit)


def write_card(path: Path, card: Card) -> None:
    """Write a card."""
    with write_aside(path) as aside:
        aside.write_text(card_text(card), encoding="utf-8")
