"""The model walk against a plain transformers forward: wall time on the bundled model, peak memory on a 3 GB one.

    python benchmarks/walk.py [--rounds 5] [--gigabytes 3]

Prints a ratio of wall times (the two in turn, medians) and the peak memory over an interpreter that has only imported
torch and transformers. Each memory figure is a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))


def wall_ratio(rounds: int, threads: int) -> dict[str, float]:
    """Return seconds and their ratio for the NLL of 64 x 512 tokens of the demo, walked and plain."""
    import torch
    from transformers import AutoModelForCausalLM

    from bitplan.evaluate.perplexity import plan_nll
    from bitplan.evaluate.teacher import make_teacher
    from bitplan.opening import opened
    from bitplan.plan import uniform
    from bitplan.quantized_walk import QuantizedWeights

    opened_model = opened(ROOT / "demo" / "model", "fp32", "cpu", threads)
    teacher = make_teacher(opened_model.model, ROOT / "demo" / "evaluation.txt", 512, 64, "fp32")
    plain = AutoModelForCausalLM.from_pretrained(ROOT / "demo" / "model", dtype=torch.float32)
    plan, walked, direct = uniform(opened_model.info, "bf16"), [], []

    def forward() -> float:
        total = 0.0
        with torch.inference_mode():
            for batch in teacher.tokens.split(4):
                logits = plain(input_ids=batch).logits[:, :-1]
                total += torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
                ).item()
        return total / teacher.tokens[:, 1:].numel()

    for _ in range(rounds + 1):
        started = time.perf_counter()
        ours = plan_nll(opened_model.model, opened_model.info, plan, teacher, QuantizedWeights()).mean().item()
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


PEAK = "print('PEAK', next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
EVALUATE = """
import sys; sys.path.insert(0, {scripts!r})
from pathlib import Path
from bitplan.opening import opened
from bitplan.evaluate.teacher import make_teacher
from bitplan.evaluate.perplexity import plan_nll
from bitplan.plan import uniform
from bitplan.quantized_walk import QuantizedWeights
model = opened(Path({folder!r}), "fp32", "cpu", {threads})
teacher = make_teacher(model.model, Path({text!r}), 512, 8, "fp32")
plan_nll(model.model, model.info, uniform(model.info, {form!r}), teacher, QuantizedWeights(limit=0))
"""


def _peak_mb(code: str) -> float:
    made = subprocess.run([sys.executable, "-c", f"{code}\n{PEAK}"], capture_output=True, text=True, check=True)
    return int(made.stdout.split("PEAK")[1]) / 1024


def peak_memory(gigabytes: float, threads: int) -> dict[str, float]:
    """Return the peak memory in MB of imports alone, and of 8 x 512 tokens on a large random model, plain and quantized."""
    with tempfile.TemporaryDirectory() as place:
        make_checkpoint(Path(place), gigabytes)
        size = sum(path.stat().st_size for path in Path(place).glob("*.safetensors"))
        imports = _peak_mb("import torch, transformers")
        facts = {"scripts": str(ROOT / "scripts"), "folder": place, "threads": threads}
        text = str(ROOT / "demo" / "evaluation.txt")
        started = time.perf_counter()
        plain = _peak_mb(EVALUATE.format(form="bf16", text=text, **facts))
        seconds = time.perf_counter() - started
        quantized = _peak_mb(EVALUATE.format(form="mxfp4", text=text, **facts))
    return {
        "checkpoint_gb": size / 1e9,
        "imports_mb": imports,
        "walk_mb": plain,
        "walk_over_imports_mb": plain - imports,
        "mxfp4_walk_over_imports_mb": quantized - imports,
        "two_walks_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for figures in (wall_ratio(args.rounds, args.threads), peak_memory(args.gigabytes, args.threads)):
        print("\n".join(f"{name:<30} {value:12.5g}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
