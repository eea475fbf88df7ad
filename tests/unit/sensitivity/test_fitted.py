"""KL fitted to a layer's anchors, and how well figures of a table agree with measured KL."""

import itertools
import json
import math

import pytest

from bitplan.core.errors import UserError
from bitplan.report.agreement import agreement_table, read_agreement
from bitplan.report.page.render import Content, page
from bitplan.sensitivity.agreement import agreement, kendall, read_rows
from bitplan.sensitivity.fitted import fit, predicted, with_fitted


def row(layer: str, form: str, error: float | None, kld: float | None, inputs: str = "bf16", **more) -> dict:
    held = {"layer": layer, "format": form, "inputs": inputs, "weighted_error": error, "mse": error, "kld": kld}
    return {**held, "kld_from": "" if kld is None else "measured", **more}


def test_two_anchors_give_the_power_law_that_goes_through_both():
    scale, power = fit((1e-4, 1e-1), (3 * (1e-4) ** 1.3, 3 * (1e-1) ** 1.3))
    assert power == pytest.approx(1.3) and math.exp(scale) == pytest.approx(3)


def test_one_anchor_gives_a_line():
    scale, power = fit((0.5,), (2.0,))
    assert power == 1 and math.exp(scale) == pytest.approx(4)


@pytest.mark.parametrize("klds", [(1.0, 1e-9), (1.0, 2.0), (1.0, 1.0)])
def test_the_slope_is_kept_sane_so_that_more_error_never_means_less_kl(klds):
    errors = (1e-1, 1e-2)
    anchors = [row("a", name, error, kld) for name, error, kld in zip(("q2_k", "q8_0"), errors, klds, strict=True)]
    found = [predicted(row("a", "q4_k", error, None), anchors) for error in (1e-3, 1e-2, 3e-2, 1e-1, 1.0)]
    assert found == sorted(found) and all(0 < value < math.inf for value in found)


def test_what_was_measured_stays_and_the_rest_is_fitted_to_its_own_layer():
    rows = [
        *(row("a", "q2_k", 0.1, 0.2), row("a", "q4_k", 0.01, None), row("a", "q8_0", 0.001, 0.002)),
        *(row("b", "q2_k", 0.1, 4.0), row("b", "q4_k", 0.01, None), row("b", "q8_0", 0.001, 0.0004)),
        row("a", "int4", 0.01, None, inputs="int4_tensor") | {"mse": 0.05, "weighted_error": 0.001},
        row("c", "q4_k", 0.01, None),
    ]
    made = with_fitted(rows)
    assert [each["kld"] for each in made] == pytest.approx([0.2, 0.02, 0.002, 4.0, 0.04, 0.0004, 0.1, None])
    sources = [each["kld_from"] for each in made]
    assert sources == ["measured", "fitted", "measured", "measured", "fitted", "measured", "fitted", ""]


def test_a_format_without_error_has_no_kl_and_anchors_without_kl_say_nothing_beside_others():
    anchors = [row("a", "q2_k", 0.1, 0.0), row("a", "q8_0", 0.01, 0.5)]
    assert predicted(row("a", "fp16", 0.0, None), anchors) == 0
    assert predicted(row("a", "q4_k", 0.02, None), anchors) == pytest.approx(1.0)
    assert predicted(row("a", "q4_k", 0.02, None), anchors[:1]) == 0
    assert predicted(row("a", "q4_k", 0.02, None), [row("a", "q2_k", 0.0, 0.0)]) is None
    assert predicted(row("a", "q4_k", 0.02, None), [row("a", "q2_k", None, 0.0)]) is None
    assert predicted(row("a", "q4_k", None, None), anchors) is None


def test_tau_counts_concordant_and_discordant_pairs():
    values, klds = (3.0, 1.0, 2.0, 5.0, 4.0), (0.3, 0.2, 0.1, 0.4, 0.5)
    rows = [row("a", "q4_k", value, kld) for value, kld in zip(values, klds, strict=True)]
    signs = [(a - b) * (x - y) > 0 for (a, x), (b, y) in itertools.combinations(zip(values, klds, strict=True), 2)]
    wanted = (sum(signs) - (len(signs) - sum(signs))) / len(signs)
    assert kendall(rows, lambda each: each["mse"]) == pytest.approx(wanted)
    assert kendall(rows[:2], lambda each: each["mse"]) is None
    assert kendall(rows, lambda each: 1.0) is None
    assert kendall([*rows, row("a", "q4_k", None, 9.0)], lambda each: each["mse"]) == pytest.approx(wanted)


def test_agreement_looks_at_measured_weight_formats_alone_and_leaves_anchors_out_of_their_own_fit():
    rows = [
        row(layer, form, error * spread, (error * spread * bend) ** power, alpha=spread)
        for (layer, spread, bend) in (("a", 1.0, 3.0), ("b", 2.0, 1.0), ("c", 5.0, 0.1), ("d", 9.0, 2.0))
        for form, error, power in (("q2_k", 1.0, 1.0), ("q4_k", 0.1, 1.0), ("q5_k", 0.03, 1.0), ("q8_0", 0.001, 1.0))
    ]
    disturbing = [row("a", "int4", 1.0, 1e9, inputs="int4_tensor"), row("b", "q3_k", 1.0, 1e9) | {"kld_from": "fitted"}]
    taus = agreement([*rows, *disturbing])
    assert list(taus["mse"]) == ["q2_k", "q4_k", "q5_k", "q8_0", "all"]
    # KL is a line in the error of each layer, with a slope of its own: the fits know it, the error does not.
    assert taus["fitted (1 anchor)"]["all"] == taus["fitted (2 anchors)"]["all"] == pytest.approx(1)
    assert taus["fitted (2 anchors)"]["q2_k"] is None and taus["fitted (1 anchor)"]["q4_k"] is None
    assert taus["mse"]["q4_k"] < 1 and taus["fisher"]["all"] is None


def test_the_table_of_taus_is_read_and_shown_in_text_and_on_the_page(tmp_path):
    taus = {
        "mse": {"all": 0.5, "q8_0": 0.25, "q2_k": None},
        "alpha": {"all": -0.125, "q8_0": 0, "q2_k": 1},
        "fisher": {"all": None},
    }
    (tmp_path / "agreement.json").write_text(json.dumps({"kendall_tau": taus}))
    read = read_agreement(tmp_path / "agreement.json")
    lines = [line.split() for line in agreement_table(read).text().splitlines()[:3]]
    assert lines[0] == ["tau", "against", "KL", "q2_k", "q8_0", "all"]
    assert lines[1:] == [["alpha", "1.000", "0.000", "-0.125"], ["mse", "0.250", "0.500"]]
    shown = page(Content("t", [agreement_table(read)], "<svg/>"))
    assert '<td>alpha</td><td data-value="1">1.000</td><td data-value="0">0.000</td>' in shown and "fisher" not in shown
    assert agreement_table({}) is None


@pytest.mark.parametrize("content", ["{}", '{"kendall_tau": [1]}', '{"kendall_tau": {"mse": {"all": "high"}}}', "tau"])
def test_a_file_of_no_taus_is_refused(content, tmp_path):
    (tmp_path / "agreement.json").write_text(content)
    with pytest.raises(UserError, match=r"agreement\.json"):
        read_agreement(tmp_path / "agreement.json")


def test_a_table_is_read_as_it_is_written(tmp_path):
    from bitplan.core.files import write_table
    from bitplan.sensitivity.local_errors import COLUMNS

    written = [row("a", "q4_k", 0.5, 0.25, alpha=2.5), row("a", "q8_0", 0.25, None)]
    write_table(tmp_path / "s.tsv", written, COLUMNS)
    read = read_rows(tmp_path / "s.tsv")
    assert [(each["mse"], each["kld"], each["alpha"], each["fisher"]) for each in read] == [
        (0.5, 0.25, 2.5, None),
        (0.25, None, None, None),
    ]
    assert json.dumps(agreement(read))


def test_an_empty_figure_is_0_only_of_a_layer_that_no_token_reached(tmp_path):
    rows = ["layer\tformat\tinputs\tmse\tkld\tkld_from\ttokens"]
    rows += [
        "a\tq8_0\tbf16\t0.5\t\tmeasured\t5",
        "b\tq8_0\tbf16\t\t\tmeasured\t0",
        "c\tq8_0\tbf16\thigh\t0.25\tmeasured\t5",
    ]
    (tmp_path / "s.tsv").write_text("\n".join(rows) + "\n")
    figures = [(row["mse"], row["kld"]) for row in read_rows(tmp_path / "s.tsv")]
    assert figures == [(0.5, None), (0.0, 0.0), (None, 0.25)]
    assert kendall(read_rows(tmp_path / "s.tsv"), lambda row: row["mse"]) is None
