"""W4 with A4 or A8 from the model to the comparison, as a person runs it: flags, files, what is printed."""

import contextlib
import io
import json
import math
import runpy
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize

from bitplan.cli.bundled_text import text_beside
from bitplan.evaluate.timing import SpeedSettings
from bitplan.formats.ggml import decode, encode
from bitplan.formats.table import FORMATS
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import describe
from bitplan.plans.plan import LayerPlan, uniform_plan
from bitplan.runtimes.gguf.convert import convert
from bitplan.runtimes.gguf.tensor_types import CANDIDATES, nearest_type, nearest_types
from bitplan.runtimes.transformers.original import greedy, run_original
from tests.conftest import ROOT, SCRIPTS
from tests.unit.cli.test_commands import flags_of

QWEN = "Qwen/Qwen2.5-7B-Instruct"
PT, GGUF = "mixed_precision_config.pt", "models/qwen2.5-7b-mixed.gguf"


def defaults(name: str, monkeypatch, *flags: str) -> list[str]:
    made = flags_of(name, monkeypatch)
    return [str(made[flag].default) for flag in flags]


def test_the_documents_flags_have_the_documents_defaults(monkeypatch):
    flags = ("--model", "--device", "--ga-pop", "--ga-gen", "--target-compression", "--output")
    assert defaults("mixed_precision_ptq.py", monkeypatch, *flags) == [QWEN, "auto", "30", "25", "0.75", PT]
    flags = ("--model", "--config", "--output", "--match")
    assert defaults("export_gguf_official.py", monkeypatch, *flags) == [QWEN, PT, GGUF, "bits"]
    assert defaults("test_mixed_precision.py", monkeypatch, "--model", "--config", "--device") == [QWEN, PT, "auto"]
    assert defaults("compare_real_quant.py", monkeypatch, "--max-tokens", "--skip-original") == ["200", "False"]
    flags = flags_of("compare_real_quant.py", monkeypatch)
    assert "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf" in flags["--q4km-path"].help
    assert GGUF in flags["--mixed-path"].help and QWEN in flags["--model-id"].help


def spoken(folder, name: str, *words: object) -> str:
    """Run a command in this process and a folder; return what it prints."""
    threads, out = torch.get_num_threads(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [name, *map(str, words)])
        patch.chdir(folder)
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
    return out.getvalue()


# ----------------------------------------------------------------------------------------------------------- the chain


@pytest.fixture(scope="module")
def chain(demo, tmp_path_factory):
    """What the four commands of the document, run one after another on the bundled model, say and write."""
    folder, said = tmp_path_factory.mktemp("chain"), {}
    model, files = ("--model_id", demo / "model"), ("--q4km_path", "q4.gguf", "--mixed_path", "models/mixed.gguf")

    def run(name: str, *words: object) -> None:
        said[name] = spoken(folder, name, *words)

    small = ("--device", "cpu", "--sequences", 2, "--length", 64)
    search = ("--ga_pop", 10, "--ga_gen", 5, "--target_compression", 0.75)
    run("mixed_precision_ptq.py", *model, *small, *search, "--output-plan", "plan.json", "--figure", "history.svg")
    run("export_gguf_official.py", *model, "--config", PT, "--output", "models/mixed.gguf")
    text = ("--max_tokens", 4, "--prompts", "Once upon a time", "--output", "simulated.json")
    run("test_mixed_precision.py", *model, *small, "--config", PT, *text)
    run("convert_gguf.py", "--model", demo / "model", "--output", "base.gguf")
    run("baseline_gguf.py", "--base", "base.gguf", "--recipe", "q4_k_m", "--output", "q4.gguf")
    speed = ("--max_tokens", 4, "--repeats", 1, "--warmup", 0, "--sequences", 2, "--length", 64)
    run("compare_real_quant.py", *model, *files, *speed, "--output", "speed.json")
    said["three"] = said["compare_real_quant.py"]
    run("compare_real_quant.py", "--skip_original", *files, *speed)
    return folder, said


def test_the_search_says_and_writes_what_it_found(chain):
    folder, said = chain
    text, content = said["mixed_precision_ptq.py"], torch.load(folder / PT, weights_only=True)
    bits = [entry["a_bits"] for entry in content.values()]
    assert len(bits) == 28 and set(bits) == {4, 8} and (4 + sum(bits) / 28) / 12 <= 0.75
    assert f"A4: {bits.count(4)} layers, A8: {bits.count(8)} layers" in text and "target 0.75: held" in text
    assert "exact optimum" in text and all(name in text for name in content)
    plan = json.loads((folder / "plan.json").read_text())
    chosen = {each["pattern"]: each.get("aq") for each in plan["overrides"] if not each.get("skip")}
    assert chosen == {name: f"int{entry['a_bits']}_tensor" for name, entry in content.items()}
    assert (folder / "history.svg").read_text().count("<svg") == 1
    assert {entry["smooth_alpha"] for entry in content.values()} == {0.5}


def test_the_file_holds_w4_as_q4_0_the_rest_as_f16_and_folded_norms(chain):
    folder, said = chain
    mixed, base = (GGUFReader(folder / name) for name in ("models/mixed.gguf", "base.gguf"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in mixed.tensors}
    layers = [name for name in kinds if name.startswith("blk.") and "norm" not in name]
    assert len(layers) == 28 and {kinds[name] for name in layers} == {"Q4_0"}
    assert {kinds[name] for name in kinds if name not in layers and "norm" not in name} == {"F16"}
    norms = {tensor.name: tensor.data for tensor in base.tensors if "norm" in tensor.name}
    changed = {t.name for t in mixed.tensors if t.name in norms and not np.array_equal(t.data, norms[t.name])}
    assert changed == {name for name in norms if name.startswith("blk.")} and len(changed) == 8
    text = said["export_gguf_official.py"]
    assert "28 x Q4_0" in text and "8 norms folded" in text and "activation formats are not stored" in text
    report = json.loads((folder / "models/mixed.json").read_text())
    assert report["smoothing"]["folded"] == 8 and report["types"]["Q4_0"] == 28


def test_the_simulation_compares_the_configuration_with_full_precision(chain):
    folder, said = chain
    made, text = json.loads((folder / "simulated.json").read_text()), said["test_mixed_precision.py"]
    assert 0 < made["kl_mean"] < 5 and made["ppl"] != made["base_ppl"]
    assert f"perplexity {made['base_ppl']:.4f} -> {made['ppl']:.4f}" in text
    assert f"KL {made['kl_mean']:.6f} nats per token" in text and "top-1 agreement" in text
    assert set(made["answers"]) == {"full precision", "quantized"} and "full precision  " in text


def test_the_comparison_shows_three_models_with_perplexity_and_kl(chain):
    folder, said = chain
    made, text = json.loads((folder / "speed.json").read_text()), said["three"]
    names = ["Original (FP32)", "Q4_K_M", "Mixed precision"]
    assert [line[:20].strip() for line in text.splitlines()[1:4]] == names
    assert all(word in text.splitlines()[0] for word in ("size MB", "load s", "tok/s", "ratio", "PPL", "KL"))
    assert list(made["scores"]) == sorted(names) and made["reference"] == names[0]
    assert made["scores"][names[0]]["kl_mean"] == 0 and made["models"][names[0]]["ratio"]["median"] == 1
    for name in names[1:]:
        scores, size = made["scores"][name], made["models"][name]["file_bytes"]
        assert scores["kl_mean"] > 0 and scores["ppl"] > 1 and scores["top1_agreement"] < 1
        assert size < made["models"][names[0]]["file_bytes"]
        assert f"{scores['ppl']:.4f}" in text and f"{scores['kl_mean']:.6f}" in text and f"\n{name}: " in text
    simulated = json.loads((folder / "simulated.json").read_text())
    assert made["scores"][names[0]]["ppl"] == pytest.approx(simulated["base_ppl"], rel=1e-6)
    # The file keeps activations whole, and the simulation does not.
    assert made["scores"][names[2]]["kl_mean"] < simulated["kl_mean"]


def test_without_the_original_two_files_are_compared(chain):
    text = chain[1]["compare_real_quant.py"]
    assert "Original" not in text and [line.split()[0] for line in text.splitlines()[1:3]] == ["Q4_K_M", "Mixed"]


# ----------------------------------------------------------------------------------------------------- the single parts


def test_a_report_never_takes_the_place_of_the_plan(tiny, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"default": {"wq": "int4"}}))
    with pytest.raises(SystemExit):
        spoken(tmp_path, "export_gguf_official.py", "--model_id", tiny, "--config", plan, "--output", "plan.gguf")
    assert "OUTPUT-IS-INPUT" in capsys.readouterr().err
    assert json.loads(plan.read_text()) == {"default": {"wq": "int4"}}


def test_a_palette_is_searched_from_a_table_without_measuring_again(tiny, tmp_path):
    windows = ("--length", 16, "--sequences", 2, "--calibration", ROOT / "demo" / "calibration.txt")
    spoken(tmp_path, "sensitivity.py", "--model", tiny, *windows, "--palette", "q8_0", "int4", "--output", "s.tsv")
    target = ("--palette", "q8_0", "int4", "--target-avg-bits", 14, "--output-config", "c.json")
    text = spoken(tmp_path, "mixed_precision_ptq.py", "--model_id", tiny, "--sensitivity", "s.tsv", *target)
    config = json.loads((tmp_path / "c.json").read_text())
    assert "average bits" in text and "target 14: held" in text
    assert config["summary"]["avg_bits"] <= 14 and config["summary"]["cost"]["block_forward_tokens"] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"s.smoothing.safetensors", "s.tsv", "c.json"} and "mixed_precision_config.pt" not in names


def test_gaussian_inputs_are_said(tiny, tmp_path):
    flags = ("--length", 16, "--sequences", 2, "--calibration", "random", "--output", "s.tsv")
    assert "28 rows for 14 layers on Gaussian inputs" in spoken(tmp_path, "sensitivity.py", "--model", tiny, *flags)


@pytest.fixture(scope="module")
def whole(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def likeliest(module, tokens: torch.Tensor, count: int) -> list[int]:
    """Greedy generation written out: no cache, no settings."""
    for _ in range(count):
        with torch.inference_mode():
            tokens = torch.cat((tokens, module(tokens).logits[:, -1:].argmax(-1)), 1)
    return tokens[0, -count:].tolist()


def test_answers_are_the_likeliest_tokens_whatever_the_prompt_and_the_settings_hold(whole):
    # Token 0 stands for the padding nowhere but here, and a checkpoint may bring a penalty along.
    whole.generation_config.repetition_penalty = 5.0
    for prompt in ([[5, 0, 9, 0]], [[0, 0, 7]], [[3, 4]]):
        assert greedy(whole, torch.tensor(prompt), 6) == likeliest(whole, torch.tensor(prompt), 6)
    whole.generation_config.repetition_penalty = None


def test_the_original_answers_in_text_and_counts_speed_after_the_first_token(tiny):
    made = run_original(tiny, SpeedSettings(max_tokens=3, threads=1, prompts=("Once upon", "A fox")))
    assert len(made.answers) == 2 and made.load_seconds > 0
    assert made.prompt_tokens_per_second > 0 and made.generation_tokens_per_second > 0


# ------------------------------------------------------------------------------------------------------ nearest type


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """The tiny model as GGUF in full precision."""
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(Checkpoint.open(tiny), path)
    return path


def errors_of(values: np.ndarray) -> dict[str, float]:
    """The mean squared error of each type that fits, by the runtime's own quantizer."""
    kinds = {name: GGMLQuantizationType[name] for name in CANDIDATES}
    usable = {n: k for n, k in kinds.items() if values.shape[1] % (256 if "_K" in n or n == "IQ4_XS" else 32) == 0}
    return {
        n: float(((decode(encode(values, k), k) - values).astype(np.float64) ** 2).mean()) for n, k in usable.items()
    }


@pytest.mark.parametrize(("form", "group"), [("int4", 128), ("int4", 16), ("int4", 1024), ("mxfp8", 32), ("int3", 32)])
@pytest.mark.parametrize("columns", [512, 96])
def test_the_nearest_type_is_the_one_whose_error_is_nearest(form, group, columns):
    if form not in FORMATS:
        pytest.skip(f"there is no {form}")
    values = np.random.default_rng(1).standard_t(5, (32, columns)).astype(np.float32)
    made = LayerPlan(form, group_size=group)
    own = float(
        np.square(FORMATS[form].roundtrip(torch.from_numpy(values), group).numpy() - values, dtype=np.float64).mean()
    )
    errors = errors_of(values)
    assert len(errors) == (12 if columns == 512 else 6)
    wanted = min(errors, key=lambda name: abs(math.log(errors[name] / own)))
    assert nearest_type(values, made, FORMATS[form]) == wanted


def test_types_are_judged_on_what_is_written_and_stored_formats_are_left_alone(tiny, base):
    info, reader = describe(Checkpoint.open(tiny)), GGUFReader(base)
    plan = uniform_plan(info, "int4", group_size=128)
    found = nearest_types(reader, info, plan)
    assert set(found) == {layer.name for layer in info.quantizable}
    assert nearest_types(reader, info, uniform_plan(info, "q8_0")) == {}
    factor = np.exp(np.random.default_rng(0).standard_normal(96)).astype(np.float32) * 40
    tensor = next(t for t in reader.tensors if t.name == "blk.0.ffn_down.weight")
    name = "model.layers.0.mlp.down_proj"
    scaled = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type) * factor, dtype=np.float32)
    wanted = nearest_type(scaled, plan.of(name), FORMATS["int4"])
    assert nearest_types(reader, info, plan, {tensor.name: factor})[name] == wanted


def test_the_nearest_types_are_written_and_reported(tiny, base, tmp_path):
    info = describe(Checkpoint.open(tiny))
    (tmp_path / "c.json").write_text(json.dumps({"default": {"wq": "int4", "group_size": 4}}))
    line = ("--model_id", tiny, "--config", "c.json", "--output", "o.gguf", "--match", "distortion")
    spoken(tmp_path, "export_gguf_official.py", *line)
    wanted = nearest_types(GGUFReader(base), info, uniform_plan(info, "int4", group_size=4))
    records = json.loads((tmp_path / "o.json").read_text())["tensors"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "o.gguf").tensors}
    made = {record["layer"]: kinds[record["tensor"]] for record in records if record["layer"] in wanted}
    # Groups of 4 err less than any type of 4 bits does.
    assert made == wanted and set(made.values()) & {"Q5_0", "Q5_1", "Q8_0"}


def test_the_documents_modules_are_the_librarys_code():
    from data_utils import windows
    from genetic_optim import search
    from quant_utils import MixedPrecisionLinear

    from bitplan.reference import text
    from bitplan.search.genetic import algorithm as genetic

    assert windows is text.windows and search is genetic.search
    torch.manual_seed(0)
    linear, inputs = torch.nn.Linear(256, 8), torch.randn(2, 5, 256)
    whole = linear(inputs)
    assert torch.equal(MixedPrecisionLinear(linear, 16, 16)(inputs), whole)
    for w_bits, a_bits, scope in ((4, 8, "tensor"), (4, 4, "token"), (8, 8, "token")):
        weight = FORMATS[f"int{w_bits}"].roundtrip(linear.weight.detach(), 128)
        rounded = FORMATS[f"int{a_bits}_{scope}"].roundtrip(inputs)
        made = MixedPrecisionLinear(linear, w_bits, a_bits, scope)(inputs)
        assert torch.equal(made, torch.nn.functional.linear(rounded, weight, linear.bias)) and not torch.equal(
            made, whole
        )


def test_the_model_of_a_mixed_file_is_known_from_its_record_and_only_while_it_is_the_same(chain, demo, tmp_path):
    from bitplan.report.three_way import known_original

    file = chain[0] / "models/mixed.gguf"
    assert known_original(file) == (demo / "model").resolve() and "PPL" in chain[1]["compare_real_quant.py"]
    record = json.loads(file.with_name("mixed.gguf.meta.json").read_text())
    (tmp_path / "m.gguf.meta.json").write_text(json.dumps({**record, "model_fingerprint": "other"}))
    assert known_original(tmp_path / "m.gguf") is None and known_original(tmp_path / "n.gguf") is None


def test_files_of_a_known_model_that_has_no_text_are_timed_and_not_scored(demo, tmp_path, caplog):
    assert text_beside(demo / "model", "evaluation.txt") == demo / "evaluation.txt" and not caplog.records
    assert text_beside(tmp_path, "evaluation.txt") is None
    assert "perplexity and KL are left out" in caplog.text and str(tmp_path) in caplog.text
