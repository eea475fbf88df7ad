"""The cache of quantized matrices: what it keeps, and what it does not do where it has no room."""

from dataclasses import replace

import pytest
import torch

from bitplan.formats.table import FORMATS
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan

WEIGHT = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
CHOICE = LayerPlan("mxfp4")


def test_without_room_no_matrix_is_packed_which_would_be_another_copy_of_it():
    def refuse(quantized):
        raise AssertionError("packed")

    weights = QuantizedWeights(limit=0, formats={"mxfp4": replace(FORMATS["mxfp4"], pack=refuse)})
    assert torch.equal(weights.get("a", WEIGHT, CHOICE), FORMATS["mxfp4"].roundtrip(WEIGHT))
    assert weights.quantizations == 1


@pytest.mark.parametrize(("limit", "quantizations"), [(0, 2), (1, 2), (1 << 20, 1)])
def test_a_matrix_is_kept_where_it_fits(limit, quantizations):
    weights = QuantizedWeights(limit=limit)
    first, second = (weights.get("a", WEIGHT, CHOICE) for _ in range(2))
    assert torch.equal(first, second) and weights.quantizations == quantizations
