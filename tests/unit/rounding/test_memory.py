"""Matrices of a layer's columns squared, which may be as large as a block of the model: as few as possible at a time."""

import gc

import pytest
import torch

from bitplan.plans.plan import LayerPlan, Plan
from bitplan.rounding import feedback
from bitplan.rounding.model import ModelRounding, round_plan
from bitplan.rounding.sweep import damped_factors
from bitplan.statistics.hessian import CrossMoments
from bitplan.statistics.shrinkage import collect_halves
from tests.families import make_family
from tests.unit.search.opened_models import Opened


def squares(columns: int) -> int:
    """How many matrices (columns, columns) are in memory."""
    tensors = (each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape == (columns, columns))
    return len({each.untyped_storage().data_ptr() for each in tensors if each.untyped_storage().nbytes() > columns**2})


def test_rounding_a_layer_takes_two_matrices_and_judging_it_one_besides_the_halves_of_the_text(tmp_path, monkeypatch):
    case, seen = Opened(make_family("llama", tmp_path / "model")), {"sweep_columns": [], "descend_": []}
    collected, crossed = [], []
    wide = [each for each in case.info.quantizable if each.name.endswith("down_proj")]
    columns = wide[0].shape[1]
    for name, counts in seen.items():
        kept = getattr(feedback, name)
        watched = lambda *given, kept=kept, counts=counts: counts.append(squares(columns)) or kept(*given)  # noqa: E731
        monkeypatch.setattr(feedback, name, watched)
    collect = lambda *given: collected.append(squares(columns)) or collect_halves(*given)  # noqa: E731
    empty = CrossMoments.empty
    monkeypatch.setattr("bitplan.rounding.model.collect_halves", collect)
    monkeypatch.setattr(CrossMoments, "empty", lambda *given: crossed.append(given) or empty(*given))
    plan = Plan({each.name: LayerPlan("int4", group_size=32) for each in wide})
    tokens = case.reference.tokens.reshape(2, -1)[:, : columns // 2]
    round_plan(case.model, case.info, plan, tokens, ModelRounding(), tmp_path / "rounded")
    assert squares(columns) == 0 and len(wide) == 2
    # Of either block: judged on both halves, then rounded. Descents need no factors, which the last round keeps.
    assert seen == {"sweep_columns": [3, 3, 2, 3, 3, 2], "descend_": [3, 3, 2, 3, 3, 2]}
    # Before two halves are added: the cross moments, which the first block has not.
    assert collected == [0, 1]
    assert len(crossed) == 1, "allocated for every window"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_are_those_of_the_inverse_and_leave_the_matrix_as_it_is(dtype):
    mixing = torch.randn(96, 64, generator=torch.Generator().manual_seed(0), dtype=dtype)
    hessian = mixing.T @ mixing
    hessian[5] = hessian[:, 5] = 0
    given = hessian.clone()
    factors = damped_factors(hessian, 0.01)
    repaired = hessian + torch.diag((hessian.diagonal() == 0).to(dtype))
    repaired.diagonal().add_(0.01 * repaired.diagonal().mean())
    torch.testing.assert_close(factors.upper.T @ factors.upper, repaired.inverse(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(factors.inverse_diagonal, repaired.inverse().diagonal(), rtol=1e-3, atol=1e-5)
    assert torch.equal(hessian, given) and torch.equal(factors.upper, factors.upper.triu())
    assert damped_factors(-hessian, 0.01) is None
