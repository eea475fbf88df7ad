"""What the optimal search may choose from where runtimes are to hold the plan, and what it counts."""

import numpy as np
import pytest

from bitplan.formats.pairs import parse_pair
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import average_bits
from bitplan.runtimes.palette import palette_of_runtimes
from bitplan.runtimes.registry import runtime_named
from bitplan.runtimes.verdicts import plan_verdicts, refuse_unheld
from bitplan.search.allocation.constraints import Constraints
from bitplan.search.allocation.problem import BYTES, Target, allocate, allocation_problem, reach
from bitplan.search.knapsack.choices import as_choice
from bitplan.search.optimal.candidates import sharing
from bitplan.search.optimal.held import held_table, shared_in
from bitplan.search.optimal.run import plan_maker
from bitplan.sensitivity.table import SensitivityTable
from tests.families import make_family

BOTH = [runtime_named(name) for name in ("gguf", "compressed_tensors")]
PALETTE = palette_of_runtimes(BOTH)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def info(request, tmp_path_factory):
    return describe(Checkpoint.open(make_family(request.param, tmp_path_factory.mktemp(request.param) / "model")))


def table_of(info, palette=PALETTE) -> SensitivityTable:
    """A table in which formats of fewer bits have more KL, of all layers and of the token embedding in two formats."""
    layers = [*info.quantizable, next(layer for layer in info.layers if layer.token_table)]
    formats = (*palette, "q4_0", "q8_0")
    bits = np.array([FORMATS[parse_pair(name).wq].bits_per_value(parse_pair(name).group_size) for name in formats])
    params = np.array([float(layer.params) for layer in layers])
    own = np.array([[(name in palette) is not layer.protected for name in formats] for layer in layers])
    kld = np.where(own, params[:, None] / params.sum() * 4.0**-bits, np.inf)
    size = np.where(own, params[:, None] * bits / 8, 0.0)
    return SensitivityTable(tuple(layer.name for layer in layers), formats, params, size, kld, ("",) * len(layers))


def plan_within(table: SensitivityTable, info, bits: float):
    problem = allocation_problem(table, Constraints(sharing(PALETTE, info, table.layers, shared_in(BOTH))))
    low, high = reach(problem)[BYTES]
    (made,) = allocate(problem, [Target(BYTES, low + (high - low) * bits)])
    choice = as_choice(problem.choices, [made.plan[name] for name in problem.choices.layers])
    return plan_maker(problem, info, PALETTE)(choice), made


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_a_plan_that_runtimes_are_to_hold_is_held_by_each_and_takes_what_they_store(info, share):
    held = held_table(table_of(info), BOTH, info, stored=True)
    plan, made = plan_within(held, info, share)
    for runtime in BOTH:
        refuse_unheld(runtime, plan, info)
    verdicts = [plan_verdicts(runtime, plan, info) for runtime in BOTH]
    assert all(verdict.is_exact for each in verdicts for verdict in each.values())
    params = {layer.name: layer.params for layer in info.layers}
    most = sum(max(each[name].stored_bits for each in verdicts) * params[name] / 8 for name in held.layers)
    assert made.bytes == pytest.approx(most, abs=1)
    assert 8 * made.bytes >= average_bits(plan, info).avg_bits_layers * sum(params[name] for name in held.layers) - 8


def test_choices_that_a_runtime_refuses_are_left_out_and_layers_without_any_stay_at_16_bits(info):
    table = table_of(info)
    held = held_table(table, BOTH, info)
    kept = {layer.name for layer in info.quantizable if not layer.transposed}
    embedding = table.layers[-1]
    assert embedding not in held.layers
    quantized = {name for row, name in enumerate(held.layers) if held.has[row, : len(held.formats) - 1].any()}
    assert quantized == kept and set(held.layers) == {layer.name for layer in info.quantizable}
    assert embedding in held_table(table, BOTH[:1], info).layers


def test_without_stored_sizes_a_choice_takes_the_bits_of_its_format(info):
    table = table_of(info, ("int4", "int8", "bf16"))
    own, stored = (held_table(table, BOTH[:1], info, stored=flag) for flag in (False, True))
    first = own.formats.index("int4")
    assert 8 * own.size[0, first] / own.params[0] == 4.125 and 8 * stored.size[0, first] / own.params[0] == 4.5


def test_what_layers_share_follows_from_what_a_runtime_stores_as_one():
    assert shared_in(BOTH) == "fusion" and shared_in(BOTH[:1]) == "experts" and shared_in([]) is None


def test_a_plan_that_is_scored_before_it_is_written_quantizes_a_tied_output_as_the_embedding(info):
    plan, _ = plan_within(held_table(table_of(info), BOTH[:1], info), info, 0.3)
    table = next(layer.name for layer in info.layers if layer.token_table)
    outputs = [layer for layer in info.layers if layer.category == "lm_head"]
    assert plan.of(table).wq in ("q4_0", "q8_0")
    for output in outputs:
        assert plan.of(output.name).wq == (plan.of(table).wq if output.tied else "bf16")
