"""The page of a comparison: what it says, and what it does in a browser."""

import re
from itertools import pairwise

import pytest

from bitplan.models.layers import Layer
from bitplan.report.answers import compared
from bitplan.report.comparison import comparison_table
from bitplan.report.figure import COLOURS
from bitplan.report.front import OF_FILES, OF_PLANS, axes_of, dominated, headlines, points_of, with_best
from bitplan.report.metrics import METRICS
from bitplan.report.page.charts import front_charts, predicted_values
from bitplan.report.page.heat_maps import cells_of, heat_map, price_charts
from bitplan.report.page.offers import offers, predicted_offers
from bitplan.report.page.render import Content, links_to, page
from bitplan.report.results import Entry
from tests.browser import CHROMIUM, browser
from tests.unit.report.test_predicted import INFO, known

EMPTY = dict.fromkeys(metric.key for metric in METRICS)


def row(name: str, method: str, bits: float, kl: float | None, **more) -> dict:
    file = {"avg_bits_file": bits, "file_bytes": int(1000 * bits), "file_kl": kl, "file_kl_error": None}
    return {**EMPTY, "name": name, "method": method, **file, **more}


ROWS = [
    row("f16", "llama.cpp", 16.0, 1e-8),
    row("q4_k_m", "llama.cpp", 4.9, 0.002, file_kl_error=0.0001),
    row("best", "optimal", 4.8, 0.001, file_kl_error=0.0001, file_kl_p99=0.0125),
    row("worse", "random", 5.0, 0.003, file_kl_error=0.02),
    row("large <b>", "genetic", 6.0, 0.0005),
    row("broken", "random", 4.0, None),
]


def test_a_row_is_dominated_by_one_that_is_no_larger_and_no_worse():
    assert axes_of(ROWS) == OF_FILES
    assert dominated(ROWS, OF_FILES) == {"q4_k_m", "worse"}
    twins = [row("a", "random", 4.0, 0.1), row("b", "random", 4.0, 0.1)]
    assert dominated(twins, OF_FILES) == set()
    assert axes_of([{**EMPTY, "avg_bits": 4.0, "kl": 0.1}]) == OF_PLANS


def test_every_row_names_the_best_of_at_most_its_size():
    best = {row["name"]: row["best_at_size"] for row in with_best(ROWS, OF_FILES)}
    assert (
        best["q4_k_m"] == best["worse"] == "best"
        and best["best"] == best["f16"] == "this one"
        and best["broken"] is None
    )
    assert "best at its size" in comparison_table(with_best(ROWS, OF_FILES)).text()


def test_the_headline_compares_the_best_plan_of_at_most_a_recipes_size():
    assert headlines(ROWS, OF_FILES) == ["At q4_k_m's size: KL 0.001 instead of 0.002, with best."]
    f16, recipe, best, *_ = ROWS
    (close,) = headlines([f16, recipe, {**best, "file_kl": 0.0019}], OF_FILES)
    assert "KL 0.0019 instead of 0.002 (within the standard errors)" in close
    (lost,) = headlines([f16, recipe, {**best, "file_kl": 0.004}], OF_FILES)
    assert lost == "At q4_k_m's size no plan has a lower KL than its 0.002; best has 0.004."
    big = row("big", "optimal", 4.9 * 1.2, 0.0012)
    (large,) = headlines([f16, recipe, big, row("bigger", "optimal", 8.0, 0.0)], OF_FILES)
    assert large == "No plan is as small as q4_k_m; big has KL 0.0012 instead of 0.002 at 1.200 times its size."
    assert headlines([f16, recipe, {**big, "file_kl": 0.1}], OF_FILES) == ["No plan is as small as q4_k_m."]
    assert headlines([f16, best], OF_FILES) == []


def test_a_kl_of_almost_nothing_is_below_the_axis_and_says_how_low():
    points = {point.name: point for point in points_of(ROWS, OF_FILES)}
    assert set(points) == {"f16", "q4_k_m", "best", "worse", "large <b>"}
    assert {name for name, point in points.items() if point.below} == {"f16"}
    assert points["f16"].kl == 1e-8 and points["f16"].label == "f16: KL 1e-08"
    assert points["worse"].error == pytest.approx(0.9 * 0.003) and points["best"].label == "best"


def layer(name: str, category: str, block: int) -> Layer:
    return Layer(name, category, (8, 8), block, "", False)


LAYERS = [
    *(layer("embed", "embedding", -1), layer("head", "lm_head", -1)),
    *(layer(f"{block}.{name}", name, block) for block in (0, 1, 10) for name in ("attn_q", "mlp_up")),
    *(layer(f"1.expert.{i}", "expert_up", 1) for i in range(3)),
]
ONE = cells_of(LAYERS, {"0.attn_q": "q4_k", "1.expert.0": "q6_k", "1.expert.1": "q4_k", "1.expert.2": "q4_k"})
OTHER = cells_of(LAYERS, {each.name: "q6_k" for each in LAYERS})


def test_the_experts_of_a_block_are_one_cell():
    cells = {(cell["block"], cell["kind"]): cell for cell in ONE}
    assert cells["1", "expert_up"]["format"] == "q4_k" and cells["1", "expert_up"]["formats"] == "q4_k x 2, q6_k x 1"
    assert cells["0", "attn_q"]["formats"] == "q4_k" and cells["in", "embedding"]["format"] == "bf16"
    chart = heat_map({"one": ONE, "other": OTHER}, {"q6_k": 6.5, "q4_k": 4.5})
    assert chart["encoding"]["x"]["sort"] == ["in", "0", "1", "10", "out"]
    assert chart["encoding"]["color"]["scale"]["domain"] == ["q4_k", "q6_k", "bf16"]


KNOWN = known()
OVERHEAD = 0.25
CONTENT = Content(
    "demo: plans compared",
    [comparison_table(ROWS)],
    "<svg/>",
    headlines(ROWS, OF_FILES),
    {
        **front_charts(ROWS, OF_FILES, predicted_values(KNOWN, OVERHEAD)),
        "formats": heat_map({"one": ONE, "other": OTHER}, {}),
        **price_charts(INFO.layers, KNOWN),
    },
    {name: [compared("Once", " a cat sat", f" a {name} sat")] for name in ("best", "worse")},
    frozenset(dominated(ROWS, OF_FILES)),
    {"best": {"plan.json": "plans/best/plan.json"}, "f16": {}},
    {**offers(ROWS, OF_FILES, INFO), **predicted_offers(KNOWN, INFO, "my text.txt", OVERHEAD)},
    predicted="They have 0.5 times it.",
)


def test_the_page_is_one_file_of_less_than_2_mb_that_escapes_what_it_shows():
    made = page(CONTENT)
    assert len(made.encode()) < 2_000_000 and "large <b>" not in made and "large &lt;b&gt;" in made
    library = max(
        re.findall(r"<script>.*?</script>", made, re.DOTALL), key=len
    )  # the drawing library has such words in its text
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?!data:)", made.replace(library, ""))
    assert made == page(CONTENT)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The page in a browser, with its charts drawn."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    folder = tmp_path_factory.mktemp("page")
    (folder / "comparison.html").write_text(page(CONTENT), encoding="utf-8")
    with browser(folder / "profile") as view:
        view.open(folder / "comparison.html")
        view.size(1200)
        drawn(view)
        yield view


def drawn(view) -> None:
    view.wait("[...document.querySelectorAll('.chart')].every(chart => chart.dataset.drawn)")


POINTS = "[...document.querySelectorAll('[data-spec=front-spec] path[aria-label*=\"method: \"]')]"
CELLS = "[...document.querySelectorAll('[data-spec=formats-spec] path[aria-label*=\"block: \"]')]"


def test_the_front_has_a_point_for_each_row_in_its_methods_colour_and_dominated_ones_are_hollow(shown):
    looks = "['aria-label', 'fill', 'stroke'].map(key => each.getAttribute(key))"
    points = {
        re.search(r"plan: ([^;]+)", label)[1]: look for label, *look in shown.value(f"{POINTS}.map(each => {looks})")
    }
    assert set(points) == {"f16", "q4_k_m", "best", "worse", "large <b>"}
    assert {name for name, (fill, _) in points.items() if fill in (None, "transparent")} == {"q4_k_m", "worse"}
    methods = {row["name"]: row["method"] for row in ROWS}
    for name, (fill, stroke) in points.items():
        assert COLOURS[methods[name]] == (stroke if name in ("q4_k_m", "worse") else fill)


FRONT = "[data-spec=front-spec]"
BOX = "(box => [box.left, box.top, box.right, box.bottom])({}.getBoundingClientRect())"


def test_a_point_below_the_axis_is_an_arrow_at_its_edge_and_the_line_does_not_go_there(shown):
    _, top, _, bottom = shown.value(BOX.format(f"{POINTS}.find(each => each.ariaLabel.includes('plan: f16'))"))
    edge = shown.value(f"document.querySelector('{FRONT} .background').getBoundingClientRect().bottom")
    assert edge - 20 < top < bottom <= edge + 1
    left = shown.value(BOX.format(f"{POINTS}.find(each => each.ariaLabel.includes('plan: f16'))"))[0]
    line = shown.value(BOX.format(f"document.querySelector('{FRONT} .front_marks path')"))
    assert line[2] < left - 20


def boxes_of(view, selector: str) -> dict[str, list[float]]:
    """The boxes of the texts that can be seen, by text."""
    found = f"[...document.querySelectorAll('{selector}')].filter(each => each.getAttribute('opacity') !== '0')"
    return dict(view.value(f"{found}.map(each => [each.textContent, {BOX.format('each')}])"))


def covers(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] - 1 and other[1] < one[3] - 1


@pytest.mark.parametrize("width", [390, 1200])
def test_no_name_covers_another_or_a_point_and_no_mark_of_an_axis_its_neighbour(shown, width):
    resized(shown, width)
    names = boxes_of(shown, f"{FRONT} .names_marks text")
    assert {"best", "f16: KL 1e-08"} <= set(names)
    points = shown.value(f"{POINTS}.map(each => {BOX.format('each')})")
    for name, box in names.items():
        assert not any(covers(box, other) for other_name, other in names.items() if other_name != name), name
        assert not any(covers(box, [x0 + 3, y0 + 3, x1 - 3, y1 - 3]) for x0, y0, x1, y1 in points), name
    for box, after in pairwise(sorted(boxes_of(shown, f"{FRONT} .role-axis-label text").values())):
        assert not covers([box[0], box[1], box[2] + 3, box[3]], after)
    resized(shown, 1200)


def resized(view, width: int, dark: bool = False) -> None:
    view.value("document.querySelectorAll('.chart').forEach(chart => delete chart.dataset.drawn)")
    view.dark(dark)
    view.size(width)
    view.value("draw()")
    drawn(view)


def test_a_table_that_is_wider_than_its_place_says_so_until_it_is_scrolled_to_its_end(shown):
    hint = "document.querySelector('.more').hidden"
    resized(shown, 390)
    shown.wait(f"!{hint} && document.querySelector('.wide').classList.contains('cut')")
    shown.value("document.querySelector('.wide').scrollLeft = 1e6")
    shown.wait("!document.querySelector('.wide').classList.contains('cut')")
    resized(shown, 2400)
    shown.wait(hint)
    resized(shown, 1200)


def test_a_point_says_its_figures_when_the_mouse_is_on_it(shown):
    place = f"{POINTS}.find(each => each.getAttribute('aria-label').includes('plan: best')).getBoundingClientRect()"
    x, y = shown.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({place})")
    shown.move(x - 40, y)
    shown.move(x, y)
    shown.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    told = shown.value("document.querySelector('#vg-tooltip-element').innerText").split()
    assert {"best", "optimal", "0.001000", "0.0125", "4.800"} <= set(told)


NAMES = (
    "[...document.querySelectorAll('#rows tbody tr')].filter(row => !row.hidden).map(row => row.cells[0].textContent)"
)


def click(view, heading: str) -> list[str]:
    find = f"[...document.querySelectorAll('#rows th button')].find(each => each.textContent === '{heading}')"
    view.value(f"{find}.click()")
    return view.value(NAMES)


def test_a_heading_sorts_by_value_and_a_second_click_the_other_way_round(shown):
    assert click(shown, "file KL") == ["f16", "large <b>", "best", "q4_k_m", "worse", "broken"]
    assert click(shown, "file KL") == ["worse", "q4_k_m", "best", "large <b>", "f16", "broken"]
    assert shown.value("document.querySelector('#rows th[aria-sort]').getAttribute('aria-sort')") == "descending"
    # As text, 16,000 would come before 4,000.
    assert click(shown, "bytes")[0] == "broken" and click(shown, "bytes")[0] == "f16"
    assert click(shown, "plan")[:2] == ["best", "broken"]


def test_rows_are_filtered_by_text_and_by_the_front(shown):
    enter = "filter.value = '{}'; filter.dispatchEvent(new Event('input'))"
    shown.value(enter.format("WOR"))
    assert shown.value(NAMES) == ["worse"]
    shown.value(enter.format("") + "; best.click()")
    assert set(shown.value(NAMES)) == {"f16", "best", "large <b>", "broken"}
    shown.value("best.click()")
    assert len(shown.value(NAMES)) == len(ROWS)


def slide(view, value: int) -> list[str]:
    view.value(f"afford.value = {value}; afford.dispatchEvent(new Event('input'))")
    return view.value("[afforded, made, expected, order].map(each => each.textContent)")


def test_the_slider_names_the_best_file_and_the_best_predicted_plan_of_at_most_a_size(shown):
    size, made, expected, order = slide(shown, 0)
    assert (size[:4], made) == (f"{KNOWN.front[0].bits + OVERHEAD:.2f}", "Nothing as small was made here.")
    bits = f"{KNOWN.front[0].bits + OVERHEAD:.2f}"
    assert expected == f"Not made yet, only predicted: a plan of {bits} bits (q4_0 x 2) with KL about 0.020000."
    assert order == "bitplan quantize some/model --text 'my text.txt' --bits 4.5 -o small.gguf"
    size, made, expected, _ = slide(shown, 1000)
    assert size.startswith("16.00 bits per parameter") and made == (
        "Made here, the best of at most this size: f16, measured KL 1.0e-8, 16,000 bytes."
    )
    assert "(q8_0 x 2)" in expected and "large <b>" in slide(shown, 720)[1]


def test_the_plan_at_the_slider_can_be_downloaded(shown):
    slide(shown, 0)
    plan = shown.value("JSON.parse(decodeURIComponent(chosen.href.replace(/^[^,]*,/, '')))")
    assert plan["overrides"][0] == {"pattern": "model.layers.0.mlp.up_proj", "wq": "q4_0"}
    assert plan["default"] == {"wq": "bf16"}


def test_the_size_of_the_slider_is_marked_on_the_front(shown):
    rule = "document.querySelector('[data-spec=front-spec] .slider_marks line')"
    slide(shown, 100)
    low = shown.value(f"{rule}.getBoundingClientRect().x")
    slide(shown, 900)
    shown.wait(f"{rule}.getBoundingClientRect().x > {low}")


def test_what_is_predicted_is_drawn_and_said_to_be_so(shown):
    names = shown.value(
        "[...document.querySelectorAll('[data-spec=front-spec] path[aria-label*=\"predicted KL\"]')].map(each => each.getAttribute('aria-label'))"
    )
    assert any("all q4_0" in name for name in names) and any("plan: predicted" in name for name in names)
    assert shown.value("document.body.textContent.includes('predicted, not made')")
    assert shown.value("document.body.textContent.includes('They have 0.5 times it.')")


def test_the_prices_of_the_chosen_format_are_drawn_beside_the_plan(shown):
    cells = "[...document.querySelectorAll('[data-spec=prices-spec] path[aria-label*=\"block: \"]')].map(each => each.getAttribute('aria-label'))"
    assert len(shown.value(cells)) == 2 and "KL: 0.015" in shown.value(cells)[0]
    tops = shown.value(
        "['formats', 'prices'].map(name => document.querySelector(`[data-spec=${name}-spec]`).getBoundingClientRect().x)"
    )
    assert tops[0] < tops[1]


def test_the_page_links_to_the_files_that_are_there(shown, tmp_path):
    assert shown.value("[...document.querySelectorAll('.files a')].map(each => each.getAttribute('href'))") == [
        "plans/best/plan.json"
    ]
    plan = tmp_path / "plans/a #1"
    (plan / "gguf").mkdir(parents=True)
    for name in ("plan.json", "plan.json.meta.json", "perplexity.json", "gguf/model.gguf", "gguf/model.gguf.meta.json"):
        (plan / name).touch()
    links = links_to([Entry("a #1", plan, True)], tmp_path / "comparison.html")
    assert links == {
        "a #1": {"plan.json": "plans/a%20%231/plan.json", "gguf/model.gguf": "plans/a%20%231/gguf/model.gguf"}
    }


def test_units_are_explained_on_the_headings(shown):
    titles = shown.value("[...document.querySelectorAll('#rows th')].map(each => each.title)")
    assert "mean KL divergence from the reference, of the file (nats per token)" in titles


def test_the_formats_of_the_chosen_plan_are_drawn(shown):
    colours = f"{CELLS}.map(each => each.getAttribute('fill'))"
    assert len(shown.value(CELLS + ".map(each => 1)")) == len(ONE) and len(set(shown.value(colours))) == 2
    choose = "(list => { list.value = 'other'; list.selectedIndex = 1; list.dispatchEvent(new Event('change')) })"
    shown.value(f"{choose}(document.querySelector('.vega-bind select'))")
    shown.wait(f"new Set({colours}).size === 1")


def test_the_legend_has_the_formats_of_the_chosen_plan_alone_and_is_not_cut(shown):
    choose = "(list => { list.selectedIndex = %d; list.dispatchEvent(new Event('change')) })(document.querySelector('.vega-bind select'))"
    resized(shown, 390)
    shown.value(choose % 1)
    shown.wait("document.querySelectorAll('[data-spec=formats-spec] .role-legend-label text').length === 1")
    shown.value(choose % 0)
    shown.wait("document.querySelectorAll('[data-spec=formats-spec] .role-legend-label text').length === 2")
    labels = boxes_of(shown, "[data-spec=formats-spec] .role-legend-label text")
    _, _, right, bottom = shown.value(BOX.format("document.querySelector('[data-spec=formats-spec] svg')"))
    assert set(labels) == {"q4_k", "bf16"}
    assert all(box[2] <= right and box[3] <= bottom for box in labels.values())
    resized(shown, 1200)


def test_the_answers_of_the_chosen_plan_stand_beside_the_references(shown):
    visible = "[...document.querySelectorAll('.answers')].filter(part => !part.hidden).map(part => part.dataset.plan)"
    marked = "[...document.querySelectorAll('.answers:not([hidden]) mark')].map(each => each.textContent)"
    assert (shown.value(visible), shown.value(marked)) == (["best"], ["best"])
    shown.value("answerer.value = 'worse'; answerer.dispatchEvent(new Event('change'))")
    assert (shown.value(visible), shown.value(marked)) == (["worse"], ["worse"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window_in_light_or_dark(shown, width, dark):
    resized(shown, width, dark)
    assert shown.value("document.documentElement.scrollWidth <= innerWidth")
    assert shown.value(f"{POINTS}.every(each => each.getBoundingClientRect().right <= innerWidth)")
    ground, text = shown.value("(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))")
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, text)]
    assert (lightness[0] < lightness[1]) is dark
    label = shown.value("document.querySelector('.role-axis-label text').getAttribute('fill')")
    assert label == ("#e6e9ec" if dark else "#1c2024")


def test_the_page_complains_of_nothing_and_asks_for_nothing_but_itself(shown):
    assert shown.complaints == []
    assert {address.split(":")[0] for address in shown.requests} <= {"file", "data"}
    assert sum(address.startswith("file:") for address in shown.requests) == 1


def test_a_page_of_one_plan_or_of_none_that_answers_complains_of_nothing_either(tmp_path):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    assert front_charts([ROWS[-1]], OF_FILES) == {}
    one = Content("one", [comparison_table(ROWS[2:3])], "<svg/>", (), front_charts(ROWS[2:3], OF_FILES))
    (tmp_path / "one.html").write_text(page(one), encoding="utf-8")
    with browser(tmp_path / "profile") as view:
        view.open(tmp_path / "one.html")
        drawn(view)
        assert view.value(POINTS + ".map(each => 1)") == [1] and view.complaints == []
