"""What every model family gives on its way through the whole workflow: the table of docs/families.md.

    python benchmarks/families.py > families.txt

A tiny random model of each family is made on the spot (tests/families.py): 2 blocks, hidden size 64, 4 experts where there are any.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch  # noqa: E402

from bitplan.core.errors import UserError  # noqa: E402
from bitplan.evaluate.scores import summarize  # noqa: E402
from bitplan.models.checkpoint import Checkpoint  # noqa: E402
from bitplan.models.layers import describe  # noqa: E402
from bitplan.models.walk import open_model  # noqa: E402
from bitplan.plans.apply import QuantizedWeights  # noqa: E402
from bitplan.reference.opening import PreparedModel  # noqa: E402
from bitplan.reference.reference import make_reference  # noqa: E402
from bitplan.runtimes.gguf.convert import convert  # noqa: E402
from bitplan.runtimes.gguf.export import export_plan  # noqa: E402
from bitplan.runtimes.gguf.llama_runtime import opened as opened_gguf  # noqa: E402
from bitplan.runtimes.gguf.scores import score_gguf  # noqa: E402
from bitplan.search.adaptive.algorithm import AdaptiveSettings  # noqa: E402
from bitplan.search.adaptive.run import alphas_of, search, token_perplexity  # noqa: E402
from bitplan.search.random.algorithm import RandomSettings, random_plan  # noqa: E402
from tests.families import FAMILIES, TEXT, make_family  # noqa: E402

HEADINGS = ("family", "layers", "logits", "adaptive", "random", "GGUF KL", "plan's GGUF KL", "file bits", "generates")


def _logit_difference(folder: Path, reference) -> float:
    """Return the largest difference between the walk's logits and those of transformers."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        wanted = module(input_ids=reference.tokens).logits[:, :-1]
    head = reference.head.read()
    ours = torch.stack([head.logits(hidden[:-1]) for hidden in reference.hidden])
    return (ours - wanted).abs().max().item()


def _gguf(model: PreparedModel, reference, plan, folder: Path) -> Iterator[str]:
    """Yield the cells of the file: KL of the base, KL and bits of the plan's, and the first token it says."""
    convert(model.checkpoint, folder / "base.gguf")
    yield f"{summarize(score_gguf(folder / 'base.gguf', reference, 1))['kl_mean']:.0e}"
    report = export_plan(folder / "base.gguf", folder / "o.gguf", model.info, plan)
    yield f"{summarize(score_gguf(folder / 'o.gguf', reference, 1))['kl_mean']:.5f}"
    yield f"{report['avg_bits_file']:.2f}"
    with opened_gguf(folder / "o.gguf", 64, 1) as runtime:
        tokens, _, _ = runtime.generate(runtime.tokenize("Near the mill"), 1)
        yield "yes" if len(tokens) == 1 else "no"


def row(name: str, folder: Path) -> list[str]:
    """Return the cells of a family."""
    checkpoint = Checkpoint.open(make_family(name, folder / "model"))
    info, streamed = describe(checkpoint), open_model(checkpoint)
    model, reference = PreparedModel(checkpoint, info, "fp32"), make_reference(streamed, TEXT, 32, 5, "fp32")
    cells = [name, str(len(info.quantizable) // 2), f"{_logit_difference(checkpoint.folder, reference):.0e}"]
    measure = token_perplexity(model, reference, QuantizedWeights())
    found = search(model, alphas_of(model, None, "hill"), measure, AdaptiveSettings(ppl_threshold=0.02)).summary
    cells.append(f"{found['avg_bits_layers']:.2f} bits, {100 * found['ppl_increase']:+.2f} %")
    plan = random_plan(info, RandomSettings(0.4, 0.2, seed=3))
    cells.append(f"{plan.summary['avg_bits_layers']:.2f} bits")
    try:
        return cells + list(_gguf(model, reference, plan, folder))
    except UserError as error:
        return [*cells, error.problems[0].what.split(": ")[-1], "-", "-", "-"]


def main() -> None:
    torch.set_num_threads(1)
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(row(name, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
