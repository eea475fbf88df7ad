"""The model walk against a plain transformers forward: time on the bundled model or another, peak memory on a 3 GB one.

    python benchmarks/walk.py [--rounds 5] [--gigabytes 3]
    python benchmarks/walk.py --model FOLDER --windows 4 --gigabytes 0

Prints the peak memory of scripts/perplexity.py over an interpreter that has only imported torch and transformers, each in a
process of its own, and ratios of times (the two in turn, medians): of the final hidden states, which need no logits, and of the NLL, which
does. The walk loads each block anew in every round; the plain model is in memory before the first. Both run the same batches. For the shape of
Qwen2.5-0.5B, `size.make_model(folder, "0.5b", 24)` of benchmarks/size.py writes FOLDER.
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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
LENGTH = 512


@dataclass(frozen=True)
class Pair:
    """The same figure of the same windows from the walk and from a model of transformers that is in memory: what is timed in turn."""

    walked: "Callable[[], Tensor]"
    plain: "Callable[[], Tensor]"

    def timed(self, rounds: int) -> dict[str, float]:
        """Return medians of seconds and ratios, of wall clock and of the processor, after one round that is not counted."""
        times = [(_seconds(self.walked), _seconds(self.plain)) for _ in range(rounds + 1)][1:]
        found: dict[str, float] = {}
        for number, clock in enumerate(("wall", "processor")):
            ours, theirs = ([one[side][number] for one in times] for side in (0, 1))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            found |= {
                f"{clock}_walk_seconds": statistics.median(ours),
                f"{clock}_plain_seconds": statistics.median(theirs),
            }
            found |= {f"{clock}_ratio_{how.__name__}": how(ratios) for how in (statistics.median, min, max)}
        expected = self.plain()
        found["largest_relative_difference"] = ((self.walked() - expected).abs().max() / expected.abs().max()).item()
        return found


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call: of the wall clock, and of the processor in all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def pairs(folder: Path, windows: int, threads: int) -> dict[str, Pair]:
    """Return what is compared on windows of 512 tokens, all by the same batches: final hidden states, and the NLL that also needs logits."""
    import torch
    from transformers import AutoModelForCausalLM

    from bitplan.evaluate.perplexity import hidden_nll
    from bitplan.reference.head import StoredHead
    from bitplan.reference.opening import prepare_model
    from bitplan.reference.text import cut_text

    model = prepare_model(folder, "fp32", "cpu", threads)
    tokens = cut_text(folder, ROOT / "demo" / "evaluation.txt", LENGTH, windows).tokens
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    head = StoredHead.of(model.checkpoint)

    def hidden_of(batch: "Tensor") -> "Tensor":
        return plain.base_model(input_ids=batch, use_cache=False).last_hidden_state

    def nll_of(batch: "Tensor") -> "Tensor":
        logits = [plain.lm_head(window[:-1]) for window in hidden_of(batch)]
        pair = zip(logits, batch[:, 1:], strict=True)
        return torch.stack([torch.nn.functional.cross_entropy(*each, reduction="none") for each in pair])

    @torch.inference_mode()
    def in_batches(run: "Callable[[Tensor], Tensor]") -> "Tensor":
        return torch.cat([run(batch) for batch in tokens.split(model.model.tokens_per_batch // LENGTH)])

    return {
        "hidden states": Pair(lambda: model.model.run(tokens), lambda: in_batches(hidden_of)),
        "NLL": Pair(lambda: hidden_nll(tokens, model.model.run(tokens), head.read()), lambda: in_batches(nll_of)),
    }


def time_ratios(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return the figures of all pairs."""
    found = pairs(folder, args.windows, args.threads)
    return {f"{name}: {key}": value for name, pair in found.items() for key, value in pair.timed(args.rounds).items()}


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


def show(figures: dict[str, float]) -> None:
    """Print figures, one a line."""
    print("\n".join(f"{name:<44} {value:12.5g}" for name, value in figures.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=64, help="windows of 512 tokens that are timed")
    parser.add_argument(
        "--gigabytes", type=float, default=3.0, help="size of the model of the peak; 0: it is not measured"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model", help="model that is timed")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # The peak comes first: a child's figure starts from its parent's.
    if args.gigabytes:
        show(peak_memory(args.gigabytes, args.threads))
    show(time_ratios(args.model, args))


if __name__ == "__main__":
    main()
