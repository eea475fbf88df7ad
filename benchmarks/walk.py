"""The model walk against a plain transformers forward: wall time on the bundled model, peak memory on a 3 GB one.

    python benchmarks/walk.py [--rounds 5] [--gigabytes 3]

Prints the peak memory of scripts/perplexity.py over an interpreter that has only imported torch and transformers, each in a
process of its own, and a ratio of wall times (the two in turn, medians).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))


def wall_ratio(rounds: int, threads: int) -> dict[str, float]:
    """Return seconds and their ratio for the NLL of 64 x 512 tokens of the demo, walked and plain."""
    import torch
    from transformers import AutoModelForCausalLM

    from bitplan.evaluate.perplexity import plan_nll
    from bitplan.plans.apply import QuantizedWeights
    from bitplan.plans.plan import uniform_plan
    from bitplan.reference.opening import prepare_model
    from bitplan.reference.reference import make_reference

    opened_model = prepare_model(ROOT / "demo" / "model", "fp32", "cpu", threads)
    reference = make_reference(opened_model.model, ROOT / "demo" / "evaluation.txt", 512, 64, "fp32")
    plain = AutoModelForCausalLM.from_pretrained(ROOT / "demo" / "model", dtype=torch.float32)
    plan, walked, direct = uniform_plan(opened_model.info, "bf16"), [], []

    def forward() -> float:
        total = 0.0
        with torch.inference_mode():
            for batch in reference.tokens.split(4):
                logits = plain(input_ids=batch).logits[:, :-1]
                total += torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                ).item()
        return total / reference.tokens[:, 1:].numel()

    for _ in range(rounds + 1):
        started = time.perf_counter()
        ours = plan_nll(opened_model.model, opened_model.info, plan, reference, QuantizedWeights()).mean().item()
        middle = time.perf_counter()
        theirs = forward()
        walked.append(middle - started)
        direct.append(time.perf_counter() - middle)
    ratios = [a / b for a, b in zip(walked[1:], direct[1:], strict=True)]
    return {
        "walk_seconds": statistics.median(walked[1:]),
        "plain_seconds": statistics.median(direct[1:]),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "nll_relative_difference": abs(ours - theirs) / theirs,
    }


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Write a random Llama-shaped bfloat16 checkpoint of about that size, sharded, one block in memory at a time."""
    import shutil

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    hidden, inner, vocabulary = 2048, 5632, 32000
    block = 2 * (4 * hidden * hidden + 3 * hidden * inner)
    blocks = round((gigabytes * 1e9 - 4 * vocabulary * hidden) / block)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=blocks,
        num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=False,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    index: dict[str, str] = {}

    def save(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {key: torch.randn(shape, dtype=torch.bfloat16) * 0.02 for key, shape in shapes.items()}
        save_file(tensors, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    square = {f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    rest = {f"mlp.{part}_proj.weight": shape for part, shape in mlp.items()}
    norms = {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    for i in range(blocks):
        shapes = {**square, **rest, **norms}
        save(f"block-{i:03d}.safetensors", {f"model.layers.{i}.{key}": shape for key, shape in shapes.items()})
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    save("ends.safetensors", {**ends, "model.norm.weight": (hidden,)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "model" / name, folder / name)


def _peak_mb(*command: str) -> float:
    """Return the peak resident memory of a command in MB. This process stays small: a child starts from its parent's figure."""
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"failed: {command}")
    return used.ru_maxrss / 1024


def peak_memory(gigabytes: float, threads: int) -> dict[str, float]:
    """Return the peak memory of imports alone, and of the perplexity command on 8 x 512 tokens of a large random model."""
    with tempfile.TemporaryDirectory() as place:
        folder, plan = Path(place) / "model", Path(place) / "plan.json"
        folder.mkdir()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(make_checkpoint, folder, gigabytes).result()
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        plan.write_text(json.dumps({"default": {"wq": "mxfp4", "aq": "mxfp4"}}))
        text, output = str(ROOT / "demo" / "evaluation.txt"), str(Path(place) / "out.json")
        command = [str(ROOT / "scripts" / "perplexity.py"), "--model", str(folder), "--text", text, "--sequences", "8"]
        command += ["--length", "512", "--threads", str(threads), "--output", output]
        imports = _peak_mb("-c", "import torch, transformers")
        started = time.perf_counter()
        plain = _peak_mb(*command)
        seconds = time.perf_counter() - started
        quantized = _peak_mb(*command, "--plan", str(plan))
    return {
        "checkpoint_gb": size / 1e9,
        "imports_mb": imports,
        "perplexity_over_imports_mb": plain - imports,
        "mxfp4_perplexity_over_imports_mb": quantized - imports,
        "perplexity_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for measure in (partial(peak_memory, args.gigabytes), partial(wall_ratio, args.rounds)):
        figures = measure(args.threads)
        print("\n".join(f"{name:<30} {value:12.5g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
