"""The settings of an opened model."""

import pytest
import torch

from bitplan.reference.opening import prepare_model


@pytest.mark.parametrize("threads", [3, 1])
def test_torch_computes_with_the_threads_it_is_given(tiny, threads):
    before = torch.get_num_threads()
    try:
        prepare_model(tiny, "fp32", "cpu", threads)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
