"""The check of a served model: asks the server, computes the plan on the same tokens, and gives a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bitplan.core.errors import user_error
from bitplan.evaluate.perplexity import head_under, plan_hidden
from bitplan.evaluate.scores import hidden_logits
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import Plan
from bitplan.reference.opening import PreparedModel, open_reference
from bitplan.reference.text import cut_text, load_tokenizer
from bitplan.runtimes.served.comparison import differences, plan_change, summarize
from bitplan.runtimes.served.modes import MODES
from bitplan.runtimes.served.questions import Question
from bitplan.runtimes.served.server import Server
from bitplan.runtimes.served.token_names import TokenNames

AS_PLANNED, DIFFERS = "as planned", "differs"


@dataclass(frozen=True)
class Check:
    """What is checked: a text or saved reference in windows, how many log-probabilities, the tolerance in nats, and the way to ask."""

    text: Path
    length: int
    sequences: int | None
    top: int
    tolerance: float
    mode: str = "auto"


def _tokens(model: PreparedModel, check: Check) -> Tensor:
    """Return the windows (sequences, length) without running the model: a server that gives nothing is told at once."""
    if check.text.suffix == ".safetensors":
        return open_reference(check.text, model, check.length, check.sequences).first(check.sequences).tokens
    model.model.check_length(check.length)
    return cut_text(model.checkpoint.folder, check.text, check.length, check.sequences, bos=model.model.bos).tokens


def check_served(
    server: Server, name: str, model: PreparedModel, plan: Plan, importance: Mapping[str, Tensor], check: Check
) -> dict[str, Any]:
    """Return how a served model's log-probabilities differ from a plan's, with the verdict. Raises `UserError`."""
    tokenizer = load_tokenizer(model.checkpoint.folder)
    tokens = _tokens(model, check)
    question = Question(server, name, check.top, tokenizer, TokenNames.of(tokenizer))
    mode = question.mode_for(tokens[0].tolist()) if check.mode == "auto" else MODES[check.mode]
    served = list(question.windows(tokens.tolist(), mode))
    reference = open_reference(check.text, model, check.length, check.sequences).first(len(tokens))
    weights = QuantizedWeights(limit=0, importance=importance)
    hidden = plan_hidden(model.model, model.info, plan, reference.tokens, weights)
    head = reference.head.read(model.model.device)
    ours = hidden_logits(hidden, head_under(head, plan, model.info, weights))
    figures = summarize(list(differences(served, reference, ours)))
    if figures["mean_difference"] is None:
        what = "gives no log-probability of the text's own tokens"
        raise user_error("SERVED-NO-LOGPROBS", server.url, what, "Use a larger --top or more windows")
    holds = figures["mean_difference"] <= check.tolerance
    return {
        "verdict": AS_PLANNED if holds else DIFFERS,
        "tolerance": check.tolerance,
        **figures,
        "plan_change": plan_change(reference, head, ours),
        **{"url": server.url, "served_model": name, "mode": mode.name, "top": check.top, "dtype": model.dtype},
        **{"windows": len(tokens), "length": tokens.shape[1]},
    }


def print_served(report: Mapping[str, Any]) -> None:
    """Print the figures of a check."""
    print(f"{report['served_model']}: {report['positions']} positions asked by {report['mode']}, {report['verdict']}")
    print(
        f"mean |difference| of log-probabilities {report['mean_difference']:.6f} nats (most {report['max_difference']:.4f})"
    )
    agreement = "not known" if report["top1_agreement"] is None else f"{100 * report['top1_agreement']:.2f} %"
    print(f"KL over the returned tokens {report['kl_top']:.6f} nats, top-1 agreement {agreement}")
    if 0 < report["plan_change"] <= report["tolerance"]:
        change, most = report["plan_change"], report["tolerance"]
        print(
            f"the plan itself changes them by {change:.6f}: a tolerance of {most:g} does not tell it from the original"
        )


def refuse_different(report: Mapping[str, Any]) -> None:
    """Raise `UserError` if the verdict is that the served model differs."""
    if report["verdict"] == DIFFERS:
        what = f"differs by {report['mean_difference']:.4f} nats on average, tolerance {report['tolerance']:g}"
        hint = "Check the served file, its plan and --dtype; docs/serving.md lists what differs by runtime"
        raise user_error("SERVED-DIFFERS", f"{report['url']}: {report['served_model']}", what, hint)
