"""A plan as lines for `llama-quantize --tensor-type-file`: an anchored regular expression and a type for every matrix of the file.

With a base type of q8_0 and `--pure`, llama.cpp then writes the bytes of our export, from the same base file and with the same importance
matrix (`--imatrix`). It can't where a plan has more than types: folded smoothing, rounded or directly packed codes, a width per channel.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from bitplan.core.files import write_aside
from bitplan.plans.plan import Plan
from bitplan.runtimes.gguf.file import TensorRecord

KEPT = "kept as converted"
NAME = "tensor_types.txt"


def type_lines(records: Iterable[TensorRecord]) -> dict[str, str]:
    """Return {pattern: type} as llama-quantize takes them, e.g. {"^blk\\.0\\.ffn_down\\.weight$": "q3_k"}; vectors have no line."""
    matrices = (record for record in records if record.layer and not record.why.startswith(KEPT))
    return dict(line_of(record.tensor, record.written) for record in matrices)


def line_of(tensor: str, kind: str) -> tuple[str, str]:
    """Return the pattern and the type of a tensor's line."""
    # std::regex knows no escaped underscore: only dots are escaped.
    return f"^{tensor.replace('.', chr(92) + '.')}$", kind.lower()


def text_of(lines: Mapping[str, str]) -> str:
    """Return the content of the file that llama-quantize reads: one `pattern=type` a line."""
    return "".join(f"{pattern}={kind}\n" for pattern, kind in lines.items())


def beside(output: Path, name: str) -> Path:
    """Return where a file that belongs to an exported one stands: beside it, under its name unless that is the workflow's."""
    return output.with_name(name if output.stem == "model" else f"{output.stem}.{name}")


def write_beside(output: Path, lines: Mapping[str, str]) -> None:
    """Write what stands beside an exported file: the lines, one `pattern=type` each, and a Modelfile for Ollama."""
    texts = {
        NAME: text_of(lines),
        "Modelfile": f"FROM ./{output.name}\n",
    }
    for name, text in texts.items():
        with write_aside(beside(output, name)) as aside:
            aside.write_text(text, encoding="utf-8")


def more_than_types(plan: Plan, packed: bool = False) -> str:
    """Return what of a plan its types alone do not say; "" where llama.cpp would write the same bytes.

    `packed`: some tensors hold codes of the plan's own formats.
    """
    held = {
        "folded smoothing": plan.smoothing is not None,
        "rounded codes": plan.rounded is not None,
        "layers with a width per channel": plan.compressed is not None,
        "codes of formats that are none of llama.cpp's, packed directly": packed,
    }
    return ", ".join(name for name, holds in held.items() if holds)
