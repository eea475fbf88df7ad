"""Evaluations kept beside a search's output: read back as they were, torn lines left out, and a killed search goes on from them."""

import json
import math
from dataclasses import dataclass

from bitplan.search.evaluations import Evaluations


@dataclass
class Counter:
    """What `once` asks of a model: how many tokens it was run on."""

    tokens_forwarded: int = 0

    def figures(self, *values: float):
        def make() -> list[float]:
            self.tokens_forwarded += 100
            return list(values)

        return make


FACTS = {"model": "m", "length": 64}
AWKWARD = (0.1 + 0.2, 1e-300, math.pi, math.inf, 5e-324)


def never() -> list[float]:
    raise AssertionError("was evaluated again")


def test_figures_are_read_back_as_they_were_and_cost_what_they_cost(tmp_path):
    first, second = Counter(), Counter()
    kept = Evaluations.beside(tmp_path / "plan.json", FACTS)
    assert kept.once("a", first, first.figures(*AWKWARD)) == list(AWKWARD)
    assert math.isnan(kept.once("b", first, first.figures(math.nan))[0])
    again = Evaluations.beside(tmp_path / "plan.json", FACTS)
    assert again.once("a", second, never) == list(AWKWARD) and math.isnan(again.once("b", second, never)[0])
    assert second.tokens_forwarded == first.tokens_forwarded == 200


def test_a_file_that_was_not_finished_loses_its_evaluation_and_no_other(tmp_path):
    model, output = Counter(), tmp_path / "plan.json"
    kept = Evaluations.beside(output, FACTS)
    for key in "abc":
        kept.once(key, model, model.figures(1.0, 2.0))
    folder = tmp_path / "plan.json.partial"
    whole = (folder / "c.json").read_bytes()
    (folder / "c.json").rename(folder / ".c.json.abcdefgh.tmp.json")
    again, made = Evaluations.beside(output, FACTS), Counter()
    assert again.once("b", made, never) == [1.0, 2.0]
    assert again.once("c", made, made.figures(1.0, 2.0)) == [1.0, 2.0] and (folder / "c.json").read_bytes() == whole


def test_figures_of_other_facts_are_not_used_and_the_log_says_so(tmp_path, caplog):
    model = Counter()
    Evaluations.beside(tmp_path / "plan.json", FACTS).once("a", model, model.figures(1.0))
    other = Evaluations.beside(tmp_path / "plan.json", FACTS | {"length": 65})
    assert other.once("a", model, model.figures(2.0)) == [2.0]
    assert "a different model, text or settings" in caplog.text
    assert json.loads((tmp_path / "plan.json.partial/a.json").read_text())["figures"] == [2.0]


def test_nothing_is_written_before_the_first_figure_nor_left_after_the_last(tmp_path):
    model = Counter()
    kept = Evaluations.beside(tmp_path / "plan.json", FACTS)
    assert list(tmp_path.iterdir()) == []
    kept.once("a", model, model.figures(1.0))
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_every_figure_is_made(tmp_path):
    model, kept = Counter(), Evaluations()
    for _ in range(2):
        kept.once("a", model, model.figures(1.0))
    assert model.tokens_forwarded == 200
    kept.remove()
