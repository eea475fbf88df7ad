"""How important each input channel of a layer is: five scores, each divided by its mean over the channels, and their weighted sum."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitplan.core.errors import Problem, UserError, nearest
from bitplan.search.sparsegpt.score_weights import WEIGHTS
from bitplan.statistics.hessian import InputMoments


def check_weights(weights: Mapping[str, float], source: str = "--weights") -> None:
    """Raise `UserError` unless the names are of the five scores, and the numbers are 0 or more and not all 0."""
    problems = [
        Problem(
            "SPARSEGPT-BAD-SCORE",
            f"{source}: {name}",
            "is not a score",
            nearest(name, WEIGHTS) or f"Known: {', '.join(WEIGHTS)}",
        )
        for name in weights
        if name not in WEIGHTS
    ]
    problems += [
        Problem(
            "SPARSEGPT-BAD-SCORE", f"{source}: {name}", f"{value} is not a valid weight", "Use a number of 0 or more"
        )
        for name, value in weights.items()
        if not 0 <= value < float("inf")
    ]
    if not problems and not any(weights.values()):
        problems = [
            Problem(
                "SPARSEGPT-BAD-SCORE",
                source,
                "no score has a weight over 0",
                f"Use e.g. activation=1; {', '.join(WEIGHTS)}",
            )
        ]
    if problems:
        raise UserError(problems)


def column_scores(weight: Tensor, moments: InputMoments, inverse_diagonal: Tensor) -> dict[str, Tensor]:
    """Return the five scores of every input channel j, each (in,) float64 with mean 1; zeros where all of them are 0.

    activation mean|x_j|; hessian 1 / [H^-1]_jj, how much the loss grows with an error of the channel once the others have made
    up for it (Hassibi and Stork 1993); weight mean_i|W_ij|; output sqrt(mean_i W_ij^2) mean|x_j|; stability var(x_j).
    weight (out, in), inverse_diagonal (in,): [H^-1]_jj.
    """
    wide, mean_abs = weight.to(torch.float64), moments.mean_abs
    raw = {
        "activation": mean_abs,
        "hessian": 1.0 / inverse_diagonal.to(torch.float64),
        "weight": wide.abs().mean(0),
        "output": wide.square().mean(0).sqrt() * mean_abs,
        "stability": moments.variance,
    }
    return {name: _by_mean(values) for name, values in raw.items()}


def _by_mean(values: Tensor) -> Tensor:
    mean = values.mean()
    return values / mean if mean > 0 else torch.zeros_like(values)


def importance(scores: Mapping[str, Tensor], weights: Mapping[str, float] = WEIGHTS) -> Tensor:
    """Return sum_k weights[k] scores[k], (in,) float64; a score that `weights` does not name counts nothing."""
    return sum(weights.get(name, 0.0) * values for name, values in scores.items())
