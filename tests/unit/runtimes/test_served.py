"""A served model's log-probabilities beside the plan's: every kind of answer, and everything that goes wrong with a server."""

import json

import check_served_model
import pytest
import teacher
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitplan.core.errors import UserError
from bitplan.models.checkpoint import Checkpoint
from bitplan.plans.plan import uniform_plan
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.served.comparison import top_kl
from bitplan.runtimes.served.token_names import TokenNames
from tests.served_stand_in import (
    Model,
    llama_cpp_python,
    llama_server,
    mlx_server,
    ollama,
    serving,
    sglang,
    vllm,
)
from tests.unit.runtimes.packed_models import described, simulated

LENGTH, WINDOWS = 12, 2


@pytest.fixture(scope="module")
def tokenizer(demo):
    return AutoTokenizer.from_pretrained(demo / "model")


def model_of(net, tokenizer, **how) -> Model:
    def logprobs(tokens):
        with torch.no_grad():
            return torch.log_softmax(net(torch.tensor([tokens])).logits[0], dim=-1)

    return Model(logprobs, tokenizer, **how)


@pytest.fixture(scope="module")
def net(demo):
    return AutoModelForCausalLM.from_pretrained(demo / "model", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def served_model(net, tokenizer):
    return model_of(net, tokenizer)


@pytest.fixture
def check(demo, tmp_path):
    """A function that checks the server at an address, and returns the report."""

    def run(url, *words, model=demo / "model"):
        sizes = ("--length", LENGTH, "--sequences", WINDOWS, "--threads", 1)
        line = ("--model", model, "--text", demo / "evaluation.txt", "--url", url, *sizes, *words)
        made = check_served_model.build_parser().parse_args([*map(str, line), "--output", str(tmp_path / "out.json")])
        check_served_model.main(made)
        return json.loads((tmp_path / "out.json").read_text())

    return run


MODES = {
    "prompt_logprobs": (vllm, WINDOWS * (LENGTH - 1)),
    "echo": (sglang, WINDOWS * (LENGTH - 1)),
    "next_token": (llama_server, WINDOWS * (LENGTH - 1)),
    # The second window begins inside a word: its text by itself is read as other tokens.
    "next_token_of_text": (mlx_server, LENGTH - 1),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_kind_of_server_is_asked_in_its_own_way_and_agrees_with_the_same_model(mode, served_model, check):
    kind, positions = MODES[mode]
    with serving(kind, served_model) as server:
        report = check(server.url)
    assert (report["mode"], report["verdict"], report["positions"]) == (mode, "as planned", positions)
    assert report["mean_difference"] < 1e-5 and report["kl_top"] < 1e-6 and report["top1_agreement"] == 1.0
    assert report["served_model"] == "a-model" and report["plan_change"] == 0.0


def test_a_plan_is_told_from_the_model_and_the_model_from_the_plan(
    demo, tokenizer, served_model, check, tmp_path, capsys
):
    made = described(demo / "model")
    (tmp_path / "plan.json").write_text(json.dumps({"default": {"wq": "int3"}, "overrides": []}))
    quantized = simulated(made, uniform_plan(made.info, "int3"), tmp_path / "quantized")
    with serving(vllm, model_of(quantized, tokenizer)) as server:
        report = check(server.url, "--plan", tmp_path / "plan.json")
        assert report["verdict"] == "as planned" and report["mean_difference"] < 1e-5
        with pytest.raises(UserError, match="SERVED-DIFFERS.*tolerance 0.02"):
            check(server.url)
    with serving(vllm, served_model) as server:
        with pytest.raises(UserError, match="SERVED-DIFFERS"):
            check(server.url, "--plan", tmp_path / "plan.json")
        # What differs is written before it is refused.
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["verdict"] == "differs" and report["mean_difference"] == pytest.approx(
            report["plan_change"], rel=1e-4
        )
        check(server.url, "--plan", tmp_path / "plan.json", "--tolerance", 5)
    assert "does not tell it from the original" in capsys.readouterr().out


def test_a_reference_that_was_saved_is_checked_without_its_text(demo, served_model, check, tmp_path):
    saved = tmp_path / "saved.safetensors"
    sizes = ("--length", LENGTH, "--sequences", WINDOWS, "--dtype", "fp32")
    line = ("--model", demo / "model", "--text", demo / "evaluation.txt", *sizes, "--output", saved)
    teacher.main(teacher.build_parser().parse_args(list(map(str, line))))
    with serving(vllm, served_model) as server:
        assert check(server.url, "--text", saved)["mean_difference"] < 1e-5


@pytest.mark.parametrize("kind", [vllm, sglang, llama_server])
def test_a_server_that_reads_less_than_was_sent_is_named(kind, net, tokenizer, check):
    told = pytest.raises(UserError, match=f"SERVED-TRUNCATED.*read {LENGTH - 4} tokens, ")
    with serving(kind, model_of(net, tokenizer, reads=LENGTH - 4)) as server, told:
        check(server.url)


def test_a_server_of_another_model_is_named(tiny, tokenizer, check):
    """It has as many tokens, and others."""

    class Other:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def decode(self, tokens):
            return tokenizer.decode([(token + 7) % len(tokenizer) for token in tokens])

    net = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with (
        serving(sglang, model_of(net, Other())) as server,
        pytest.raises(UserError, match="SERVED-OTHER-TOKENS.*echoes other tokens"),
    ):
        check(server.url)
    with (
        serving(vllm, model_of(net, tokenizer)) as server,
        pytest.raises(UserError, match="SERVED-DIFFERS|SERVED-OTHER-TOKENS"),
    ):
        check(server.url)


def test_a_server_without_log_probabilities_is_told_with_what_each_way_got(check):
    with (
        serving(ollama, None) as server,
        pytest.raises(UserError, match="SERVED-NO-LOGPROBS.*no prompt_logprobs.*next_token_of_text: no logprobs"),
    ):
        check(server.url)


def test_more_log_probabilities_than_a_server_gives_are_told_in_its_own_words(served_model, check):
    with (
        serving(vllm, served_model) as server,
        pytest.raises(UserError, match="SERVED-REFUSED.*greater than max allowed: 20"),
    ):
        check(server.url, "--top", 50, "--mode", "prompt_logprobs")


def test_a_server_that_is_not_there_and_an_address_that_is_none_are_errors(check):
    with serving(ollama, None) as server:
        gone = server.url
    with pytest.raises(UserError, match="SERVED-UNREACHABLE.*ConnectError"):
        check(gone)
    with pytest.raises(UserError, match="SERVED-BAD-URL"):
        check("ftp://127.0.0.1/v1")


def test_a_name_that_the_server_does_not_list_gets_the_nearest_one(served_model, check):
    with serving(vllm, served_model, names=("small", "large")) as server:
        with pytest.raises(UserError, match="SERVED-NO-MODEL.*'smal'.*Did you mean 'small'"):
            check(server.url, "--served-model", "smal")
        with pytest.raises(UserError, match="SERVED-NO-MODEL.*serves small, large"):
            check(server.url)
        assert check(server.url, "--served-model", "large")["served_model"] == "large"
        assert {body["model"] for body in server.bodies} == {"large"}


def test_the_key_comes_from_the_environment_and_is_never_shown(served_model, check, monkeypatch, tmp_path, capsys):
    with serving(vllm, served_model, key="secret-7") as server:
        with pytest.raises(UserError, match="SERVED-UNAUTHORIZED.*wants a key"):
            check(server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "wrong-8")
        with pytest.raises(UserError, match="SERVED-UNAUTHORIZED") as refused:
            check(server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
        server.instead["/v1/completions"] = (500, b'{"error": {"message": "bad key secret-7\\nhere"}}')
        with pytest.raises(UserError, match=r"bad key \*\*\* here") as failed:
            check(server.url, "--mode", "prompt_logprobs")
        server.instead.clear()
        check(server.url)
    shown = f"{refused.value}{failed.value}{capsys.readouterr()}{(tmp_path / 'out.json').read_text()}"
    shown += (tmp_path / "out.json.meta.json").read_text()
    assert "secret-7" not in shown and "wrong-8" not in shown


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>hello</html>", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": [{"prompt_logprobs": [null, {"5": {"logprob": 3}}]}]}', "SERVED-TRUNCATED"),
    ],
)
def test_answers_of_another_shape_are_told(body, reason, served_model, check):
    with serving(vllm, served_model) as server:
        server.instead["/v1/completions"] = (200, body)
        with pytest.raises(UserError, match=reason):
            check(server.url)


@pytest.mark.parametrize("value", [float("nan"), 0.5, "x", None, True])
def test_values_that_are_no_log_probabilities_are_refused(value, served_model, check):
    def wrong(model, body):
        answer = vllm(model, body)
        if rows := answer["choices"][0]["prompt_logprobs"]:
            next(iter(rows[-1].values()))["logprob"] = value
        return answer

    refused = pytest.raises(UserError, match="SERVED-REFUSED.*is no log-probability")
    with serving(wrong, served_model) as server, refused:
        check(server.url, "--mode", "prompt_logprobs")


# -------------------------------------------------------------------------------------------------- llama.cpp's own answers


@pytest.fixture(scope="module")
def llama(demo, tmp_path_factory):
    """The bundled model in llama.cpp, with a tokenizer that puts a BOS before a text."""
    from llama_cpp import Llama

    path = tmp_path_factory.mktemp("llama") / "base.gguf"
    convert(Checkpoint.open(demo / "model"), path)
    bos = {"tokenizer.ggml.add_bos_token": True}
    model = Llama(str(path), logits_all=True, verbose=False, n_ctx=128, n_threads=1, kv_overrides=bos)
    yield model
    model.close()


def test_llama_cpp_s_own_answers_agree_by_next_token_where_windows_begin_anywhere(llama, check):
    with serving(llama_cpp_python, llama) as server:
        report = check(server.url, "--bos", "never")
    assert (report["mode"], report["verdict"]) == ("next_token", "as planned")
    assert report["mean_difference"] < 0.02 and report["kl_top"] < 1e-3


def test_llama_cpp_s_own_echo_agrees_where_windows_begin_with_bos(llama, check):
    with serving(llama_cpp_python, llama) as server:
        report = check(server.url, "--bos", "always")
    assert (report["mode"], report["verdict"]) == ("echo_of_text", "as planned")
    # The position after BOS is not said.
    assert report["positions"] == WINDOWS * (LENGTH - 2)
    assert report["mean_difference"] < 0.02 and report["kl_top"] < 1e-3


def test_an_echo_that_comes_one_place_late_is_not_taken(served_model, check):
    """As llama-cpp-python's without a leading BOS: every distribution stands at the token before its own."""

    def late(model, body):
        answer = sglang(model, body)
        lists = answer["choices"][0]["logprobs"]
        if body.get("echo"):
            for key in ("token_logprobs", "top_logprobs"):
                lists[key] = [None, *lists[key][2:], lists[key][-1]]
        return answer

    with serving(late, served_model) as server:
        assert check(server.url)["mode"] == "next_token"
        with pytest.raises(UserError, match="SERVED-DIFFERS"):
            check(server.url, "--mode", "echo")


# --------------------------------------------------------------------------------------------------------------- figures


def test_kl_over_some_tokens_and_the_rest_is_at_most_that_over_all():
    generator = torch.Generator().manual_seed(0)
    ours, served = (torch.log_softmax(torch.randn(50, generator=generator), 0) for _ in range(2))
    whole = (ours.exp() * (ours - served)).sum().item()
    assert top_kl(ours, served) == pytest.approx(whole, rel=1e-5)
    bounds = [top_kl(ours[:count], served[:count]) for count in (1, 5, 20, 49)]
    assert bounds == sorted(bounds) and bounds[0] > 0 and bounds[-1] <= whole * (1 + 1e-5)


def test_a_text_that_several_tokens_have_names_none(tokenizer):
    names = TokenNames.of(tokenizer)
    space, bare = tokenizer.convert_tokens_to_ids(["▁I", "I"])
    assert tokenizer.decode([space]) == tokenizer.decode([bare]) and "I" not in names.ways["decoded"]
    assert (names.ways["piece"][" I"], names.ways["piece"]["I"]) == (space, bare)
    assert names.by_texts([" I", " was"]) is names.ways["piece"]
    assert names.by_echo([" I", "I"], [space, bare])[1] == 1.0
