"""Peak memory and time of the steps that touch weights, on random checkpoints of large shapes: the tables of docs/scaling.md.

    python benchmarks/size.py [--blocks 7 14 28] [--sequences 4] [--folder FOLDER] [--steps evaluation perplexity]
    python benchmarks/size.py --shape 70b --blocks 1

The largest checkpoint (28 blocks of the 7b shape: 15 GB) is written block by block; smaller ones are the same files with fewer blocks named.
Each step is a process of its own, run as the workflow runs it. Columns: `seconds` of wall clock; `cpu_s` of all threads, which other
work on the machine changes less; `peak_gb`, the largest resident memory of the step's processes together, pages of mapped
files among it; `own_gb`, the same without mapped files, which the system takes back whenever it wants them.
With --folder the checkpoint is kept, and used again by the next run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
GB = 1e9
EVERY = 0.02  # seconds between two looks at a process's memory
COLUMNS = ("shape", "blocks", "sequences", "gb", "step", "seconds", "cpu_s", "peak_gb", "own_gb")
PLAN = {
    "default": {"wq": "mxfp8", "aq": "bf16"},
    "overrides": [{"pattern": "*.mlp.*", "wq": "mxfp4", "aq": "bf16"}],
}
BOTH_PLAN = {"default": {"wq": "mxfp4", "aq": "mxfp4"}}
K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
K_PLAN = {"default": {"wq": "q4_k", "aq": "bf16"}}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the family Qwen2."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    # Whether the output matrix is the token embedding.
    tied: bool = False

    def block(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes (out, in) of a block's tensors by name."""
        wide, narrow = (self.hidden, self.hidden), (self.kv_heads * (self.hidden // self.heads), self.hidden)
        attention = {"q": wide, "k": narrow, "v": narrow, "o": wide}
        up = (self.inner, self.hidden)
        mlp = {f"mlp.{part}_proj.weight": shape for part, shape in (("gate", up), ("up", up), ("down", up[::-1]))}
        biases = {f"self_attn.{part}_proj.bias": attention[part][:1] for part in "qkv"}
        norms = {f"{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
        return {
            **{f"self_attn.{part}_proj.weight": shape for part, shape in attention.items()},
            **biases,
            **mlp,
            **norms,
        }

    def files(self, blocks: int) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return {file: {tensor: shape}} of a checkpoint with so many blocks."""
        inside = {
            f"block-{i:03d}.safetensors": {f"model.layers.{i}.{key}": shape for key, shape in self.block().items()}
            for i in range(blocks)
        }
        table = (self.vocabulary, self.hidden)
        own = {} if self.tied else {"lm_head.weight": table}
        head = {**own, "model.norm.weight": (self.hidden,)}
        return {**inside, "embedding.safetensors": {"model.embed_tokens.weight": table}, "head.safetensors": head}


# Qwen2.5-0.5B (24 blocks), Qwen2.5-7B (28), and the sizes of Llama 3 70B (80).
SHAPES = {
    "0.5b": Shape(896, 4864, 14, 2, 151936, tied=True),
    "7b": Shape(3584, 18944, 28, 4, 152064),
    "70b": Shape(8192, 28672, 64, 8, 128256),
}


def make_settings(folder: Path, shape: Shape, blocks: int) -> None:
    """Write config.json, a small byte-level tokenizer and the index of a checkpoint with so many blocks."""
    code = "from tests.families import make_family; import sys; from pathlib import Path; make_family('qwen2', Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": blocks,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied, "dtype": "bfloat16",
        "max_position_embeddings": 32768, "max_window_layers": blocks, "layer_types": ["full_attention"] * blocks,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    index = {name: file for file, shapes in shape.files(blocks).items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def make_weights(folder: Path, shape: Shape, blocks: int) -> None:
    """Write the files of random bfloat16 weights that are not there yet: the size of trained ones, Gaussian, norms 1."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    inner = 0.02 / (2 * blocks) ** 0.5

    def weight(name: str, size: tuple[int, ...]) -> torch.Tensor:
        scale = inner if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        values = torch.randn(size, dtype=torch.bfloat16).mul_(scale)
        return torch.ones(size, dtype=torch.bfloat16) if "norm" in name else values

    for file, shapes in shape.files(blocks).items():
        if not (folder / file).exists():
            save_file({name: weight(name, size) for name, size in shapes.items()}, folder / file, {"format": "pt"})


def linked(whole: Path, folder: Path, shape: Shape, blocks: int) -> Path:
    """Return a checkpoint in `folder` with the first blocks of `whole`."""
    folder.mkdir(parents=True)
    for file in shape.files(blocks):
        (folder / file).symlink_to(whole / file)
    make_settings(folder, shape, blocks)
    return folder


@dataclass(frozen=True)
class Used:
    """What a process and its children used: seconds of wall clock and of processors, largest memory in bytes."""

    seconds: float
    cpu: float
    peak: int
    own: int


def _of_tree(pid: int) -> Iterator[int]:
    """Yield a process and those below it."""
    yield pid
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        below = []
    for child in below:
        yield from _of_tree(int(child))


def _memory(pid: int) -> tuple[int, int]:
    """Return (resident, resident without mapped files) in bytes; 0 of a process that has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        total, of_files = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "RssFile"))
    except (OSError, KeyError):
        return 0, 0
    return total, total - of_files


def measured(command: list[str], log: Path) -> Used:
    """Run a command and return what it used. Ends the program when it fails.

    This process stays small: the kernel's own figure for a child (taken into account, so that no peak is missed) starts from it.
    """
    started = time.perf_counter()
    with open(log, "a") as handle:
        child = subprocess.Popen([sys.executable, *command], stdout=handle, stderr=handle)
    peak = own = status = 0
    used = None
    while used is None:
        sizes = [_memory(pid) for pid in _of_tree(child.pid)]
        peak, own = max(peak, sum(size[0] for size in sizes)), max(own, sum(size[1] for size in sizes))
        time.sleep(EVERY)
        done, status, usage = os.wait4(child.pid, os.WNOHANG)
        used = usage if done else None
    if status:
        raise SystemExit(f"failed, {log} says why: {' '.join(command)}")
    return Used(time.perf_counter() - started, used.ru_utime + used.ru_stime, max(peak, used.ru_maxrss * 1024), own)


def steps(model: Path, out: Path, sequences: int, threads: int) -> dict[str, list[str]]:
    """Return the command of each step by name, in an order in which each finds what it reads."""
    described, base, saved = (str(out / name) for name in ("model.json", "base.gguf", "evaluation.safetensors"))
    text, many = str(ROOT / "demo" / "evaluation.txt"), ["--threads", str(threads)]
    windows = ["--length", "512", "--sequences", str(sequences)]
    plans = {"plan": PLAN, "both": BOTH_PLAN, "k": K_PLAN}
    for name, plan in plans.items():
        (out / f"{name}.json").write_text(json.dumps(plan))
    plan, both, k_plan = (str(out / f"{name}.json") for name in plans)

    def command(name: str, *flags: str, output: str, source: str = described) -> list[str]:
        return [str(SCRIPTS / name), "--model", source, *flags, "--output", str(out / output)]

    def export(plan: str, output: str) -> list[str]:
        flags = ("--plan", plan, "--base", base, *many, "--report", str(out / "gguf.json"))
        return command("export_gguf.py", *flags, output=output)

    def perplexity(*flags: str) -> list[str]:
        return command("perplexity.py", "--text", saved, *flags, *many, output="perplexity.json")

    statistics = ("--calibration", str(ROOT / "demo" / "calibration.txt"), *windows, *many)
    kept = str(out / "calibration.safetensors")
    keep = ("--save-text", kept)
    priced = ("--metric", "gradient", "--draws", "4", "--palette", *K_TYPES)
    return {
        "model": command("describe_model.py", output="model.json", source=str(model)),
        "layer statistics": command("layer_stats.py", *statistics, *keep, output="layer_stats.tsv"),
        "prices": command("sensitivity.py", "--calibration", kept, *priced, *many, output="sensitivity.tsv"),
        "rounding q4_k": command("round_model.py", "--plan", k_plan, "--calibration", kept, *many, output="rounded"),
        "average bits": command("calculate_avg_bits.py", "--config", plan, output="bits.csv"),
        "evaluation": command("teacher.py", "--text", text, *windows, *many, output="evaluation.safetensors"),
        "perplexity": perplexity("--plan", plan),
        "perplexity mxfp4 W and A": perplexity("--plan", both),
        "base GGUF": command("convert_gguf.py", output="base.gguf"),
        "GGUF export": export(plan, "plan.gguf"),
        "GGUF export q4_k": export(k_plan, "plan.gguf"),
    }


def rows_of(model: Path, out: Path, blocks: int, args: argparse.Namespace) -> Iterator[tuple]:
    """Yield a row of the table for each step that was asked for, as soon as it is done."""
    size = sum(path.stat().st_size for path in model.glob("*.safetensors")) / GB
    for sequences in args.sequences:
        wanted = steps(model, out, sequences, args.threads)
        for step in args.steps or wanted:
            used = measured(wanted[step], out / "log.txt")
            memory = (used.peak / GB, used.own / GB)
            yield (
                args.shape,
                blocks,
                sequences,
                f"{size:.2f}",
                step,
                *(f"{x:.2f}" for x in (used.seconds, used.cpu, *memory)),
            )


def make_model(folder: Path, shape: str, blocks: int) -> None:
    """Write a checkpoint of a shape's name; the weights in a process of its own, which gives their memory back."""
    folder.mkdir(parents=True, exist_ok=True)
    make_settings(folder, SHAPES[shape], blocks)
    call = f"from pathlib import Path; import size; size.make_weights(Path({str(folder)!r}), size.SHAPES[{shape!r}], {blocks})"
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", call], check=True, env=place)


def run(folder: Path, args: argparse.Namespace) -> None:
    """Make the checkpoints in a folder and print the table."""
    whole, most, shape = folder / f"model-{args.shape}", max(args.blocks), SHAPES[args.shape]
    make_model(whole, args.shape, most)
    print(*COLUMNS, sep="\t", flush=True)
    for blocks in args.blocks:
        out = folder / f"{args.shape}-{blocks}"
        if not args.steps:
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(exist_ok=True)
        shutil.rmtree(out / "model", ignore_errors=True)
        for row in rows_of(linked(whole, out / "model", shape, blocks), out, blocks, args):
            print(*row, sep="\t", flush=True)
        for file in out.glob("*.gguf"):
            if not args.keep:
                file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--blocks", type=int, nargs="+", default=[28], help="decoder blocks of each checkpoint")
    parser.add_argument("--sequences", type=int, nargs="+", default=[4], help="windows of 512 tokens")
    parser.add_argument("--steps", nargs="+", help="steps to run, those of an earlier run in --folder taken as done")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to keep the checkpoint; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="keep the GGUF files, too")
    args = parser.parse_args()
    if args.folder:
        run(args.folder.resolve(), args)
        return
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), args)


if __name__ == "__main__":
    main()
