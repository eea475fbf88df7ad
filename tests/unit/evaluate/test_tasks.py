"""lm-eval on models and plans: bundled tasks, own tasks, the search on a task's metric."""

import json

import pytest
import torch

from bitplan.core.errors import UserError
from bitplan.demo.questions import CHOICES, questions
from bitplan.evaluate.tasks import TaskSettings, load_tasks, main_metric, metrics_of, run_tasks
from bitplan.evaluate.whole_model import open_whole_model
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.models.walk import open_model
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import uniform_plan
from bitplan.reference.opening import PreparedModel
from bitplan.search.adaptive.algorithm import AdaptiveSettings
from bitplan.search.adaptive.run import alphas_of, search, task_metric
from tests.families import make_family


@pytest.fixture(scope="module")
def bundled(demo):
    checkpoint = Checkpoint.open(demo / "model")
    return checkpoint, describe(checkpoint)


@pytest.fixture(scope="module")
def figures(bundled):
    """The bundled tasks on the bundled model, whole and with every layer in a format, 60 documents each."""
    checkpoint, info = bundled
    tasks = load_tasks(TaskSettings(("demo_stories", "demo_memory"), limit=60))
    model = open_whole_model(open_model(checkpoint), info, QuantizedWeights())
    results = {}
    for name in ("bf16", "mxfp8", "int2", "bf16 again"):
        with model.under(uniform_plan(info, name.split()[0])) as module:
            results[name] = run_tasks(tasks, module, checkpoint.folder)
    return results


def test_the_bundled_tasks_tell_a_whole_model_from_a_broken_one(figures):
    whole_, broken = figures["bf16"], figures["int2"]
    assert whole_["demo_stories"]["word_perplexity"] < 5 < broken["demo_stories"]["word_perplexity"]
    # Four choices: a model that has forgotten the story is right once in four.
    assert whole_["demo_memory"]["acc"] > 0.45 > broken["demo_memory"]["acc"]
    assert whole_["demo_stories"]["word_perplexity"] < figures["mxfp8"]["demo_stories"]["word_perplexity"] * 1.01


def test_the_model_is_itself_again_after_a_plan(figures):
    assert figures["bf16"] == figures["bf16 again"]


def test_the_three_figures_of_a_text_are_one(figures):
    row = figures["bf16"]["demo_stories"]
    assert row["bits_per_byte"] == pytest.approx(torch.log2(torch.tensor(row["byte_perplexity"])).item(), rel=1e-5)
    assert row["documents"] == 60


def test_the_harness_sees_the_perplexity_that_a_forward_gives(bundled, figures, demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint, _ = bundled
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    module = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    pages = [line for line in (demo / "evaluation.txt").read_text().splitlines() if line][:60]
    nll = 0.0
    for page in pages:
        tokens = tokenizer(page, add_special_tokens=False, return_tensors="pt").input_ids
        with_start = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), tokens], dim=1)
        with torch.inference_mode():
            logits = module(input_ids=with_start).logits[0, :-1]
        nll += torch.nn.functional.cross_entropy(logits, with_start[0, 1:], reduction="sum").item()
    size = sum(len(page.encode()) for page in pages)
    assert figures["bf16"]["demo_stories"]["byte_perplexity"] == pytest.approx(2.718281828 ** (nll / size), rel=1e-4)


def test_a_whole_model_under_a_plan_gives_the_logits_of_the_walk(tmp_path):
    checkpoint = Checkpoint.open(make_family("mixtral", tmp_path / "model"))
    info = describe(checkpoint)
    plan = uniform_plan(info, "mxfp4", "mxfp8")
    tokens = torch.arange(3, 67).view(2, 32)
    from bitplan.evaluate.perplexity import plan_hidden
    from bitplan.reference.head import StoredHead

    hidden = plan_hidden(open_model(checkpoint), info, plan, tokens, QuantizedWeights())
    expected = StoredHead.of(checkpoint).read().logits(hidden.flatten(0, 1)).view(2, 32, -1)
    with (
        open_whole_model(open_model(checkpoint), info, QuantizedWeights()).under(plan) as module,
        torch.inference_mode(),
    ):
        assert torch.allclose(module(input_ids=tokens).logits, expected, atol=1e-4)


def test_questions_have_one_right_answer_that_the_story_has_told(demo):
    items = questions(7, 40)
    assert items == questions(7, 40) and items != questions(8, 40)
    for question in items:
        right = question["choices"][question["answer"]]
        assert len(set(question["choices"])) == CHOICES and f" {right}" in question["context"]
    stored = [json.loads(line) for line in (demo / "tasks" / "questions.jsonl").read_text().splitlines()]
    assert stored == questions(3_000_003, len(stored)) and len(stored) == 200


def test_a_search_may_be_on_a_tasks_metric(bundled):
    checkpoint, info = bundled
    model = PreparedModel(checkpoint, info, "fp32")
    measure = task_metric(model, TaskSettings(("demo_stories",), limit=8), None, QuantizedWeights())
    plan = search(model, alphas_of(model, None, "hill"), measure, AdaptiveSettings(0.02, 6.0, 2.0))
    assert plan.summary["evaluated_on"]["metric"] == "word_perplexity" and plan.summary["ppl_increase"] <= 0.02
    assert plan.summary["measure"] == "demo_stories word_perplexity" and 3 < plan.summary["base_ppl"] < 6
    assert plan.summary["cost"]["block_forward_tokens"] > 0


def test_where_higher_is_better_the_search_limits_the_error_rate(bundled):
    checkpoint, info = bundled
    model = PreparedModel(checkpoint, info, "fp32")
    measure = task_metric(model, TaskSettings(("demo_memory",), limit=20), "acc", QuantizedWeights())
    assert measure.name == "demo_memory 1 - acc"
    whole_, broken = (measure.figure(uniform_plan(info, name)) for name in ("bf16", "int2"))
    assert 0 < whole_ < broken <= 1


def test_an_own_task_comes_from_a_folder(bundled, tmp_path):
    checkpoint, info = bundled
    (tmp_path / "docs.jsonl").write_text('{"page": "Once upon a time there was a fox."}\n')
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'docs.jsonl'}}}}}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{page}}'\n"
        "metric_list: [{metric: byte_perplexity}]\n"
    )
    tasks = load_tasks(TaskSettings(("mine",), include_path=tmp_path))
    with open_whole_model(open_model(checkpoint), info, QuantizedWeights()).under(uniform_plan(info, "bf16")) as module:
        assert 1 < run_tasks(tasks, module, checkpoint.folder)["mine"]["byte_perplexity"] < 10


def test_unknown_tasks_and_metrics_name_the_nearest():
    with pytest.raises(UserError, match="TASKS-UNKNOWN"):
        load_tasks(TaskSettings(("demo_storys",)))
    tasks = load_tasks(TaskSettings(("demo_memory",)))
    with pytest.raises(UserError, match="TASKS-NO-METRIC"):
        main_metric(metrics_of(tasks, "demo_memory"), "demo_memory", "ppl")


def test_a_task_whose_data_is_out_of_reach_says_so():
    with pytest.raises(UserError, match="TASKS-NOT-LOADED.*task wikitext"):
        load_tasks(TaskSettings(("wikitext",)))


def test_the_command_writes_the_same_bytes_twice(command, demo, tmp_path):
    arguments = ("--model", demo / "model", "--tasks", "demo_memory", "--limit", 5, "--threads", 1)
    for name in ("a.json", "b.json"):
        result = command("eval_with_lm_eval.py", *arguments, "--output", tmp_path / name)
    assert "demo_memory" in result.stdout and "acc" in result.stdout
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["tasks"]["demo_memory"]["documents"] == 5


def test_plans_with_a_scale_per_window_do_not_see_the_padding_of_a_batch(command, demo, tmp_path):
    (tmp_path / "c.json").write_text('{"default": {"wq": "int4", "aq": "int4_tensor"}}')
    arguments = ("--model", demo / "model", "--plan", tmp_path / "c.json", "--tasks", "demo_stories", "--limit", 4)
    for size in (1, 4):
        command("eval_with_lm_eval.py", *arguments, "--batch_size", size, "--output", tmp_path / f"{size}.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "4.json").read_bytes()


def test_a_list_of_tasks_may_come_as_one_flag_or_as_several(command, demo, tmp_path):
    flags = ("--tasks", "demo_stories", "--tasks", "demo_memory", "--limit", 2, "--output", tmp_path / "o.json")
    command("eval_with_lm_eval.py", "--model", demo / "model", *flags)
    assert set(json.loads((tmp_path / "o.json").read_text())["tasks"]) == {"demo_stories", "demo_memory"}


def test_metrics_after_a_filter_have_its_name_and_a_broken_plans_figures_are_dashes(tmp_path):
    from types import SimpleNamespace

    from bitplan.evaluate.tasks import LoadedTasks
    from bitplan.report.results import Entry
    from bitplan.report.tasks import task_rows, tasks_table

    task = SimpleNamespace(
        higher_is_better=lambda: {"exact_match": True},
        aggregation=lambda: {"exact_match": None},
        _filters=[SimpleNamespace(name="strict-match"), SimpleNamespace(name="flexible")],
    )
    metrics = metrics_of(LoadedTasks(TaskSettings(("t",)), None, {"tasks": {"t": task}}), "t")
    assert metrics == {"exact_match.strict-match": True, "exact_match.flexible": True}
    assert main_metric(metrics, "t") == "exact_match.strict-match"
    (tmp_path / "p").mkdir()
    for path, value in ((tmp_path / "tasks.json", 4.5), (tmp_path / "p/tasks.json", None)):
        path.write_text(json.dumps({"tasks": {"t": {"ppl": value, "documents": 3}}}))
    text = tasks_table(task_rows(tmp_path / "tasks.json", [Entry("p", tmp_path / "p", True)])).text()
    assert "4.5000" in text and " -" in text.splitlines()[2]
