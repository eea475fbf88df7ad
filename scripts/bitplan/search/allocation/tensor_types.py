"""An allocation as a file for `llama-quantize --tensor-type-file`, one for each target."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside
from bitplan.search.allocation.problem import Allocation, Target

PLACE = "{target}"


def type_files(place: Path, targets: Sequence[Target]) -> list[Path]:
    """Return the file of each target. Raises `UserError` where several would be one."""
    files = [Path(str(place).replace(PLACE, f"{target.limit:.10g}")) for target in targets]
    if len(set(files)) < len(files):
        hint = f"Put {PLACE} into its name"
        raise user_error("ALLOCATE-ONE-FILE", f"--tensor-types {place}", "would be overwritten by each target", hint)
    return files


def write_type_files(
    files: Sequence[Path], made: Sequence[Allocation], base: Path | None, unquantized: str
) -> Iterator[str]:
    """Write the lines of every allocation, and yield the command that uses each file. Raises `UserError` as `lines_for` does."""
    # They load gguf and torch, which an allocation without such files does without.
    from bitplan.runtimes.gguf.named_types import lines_for
    from bitplan.runtimes.gguf.type_lines import text_of

    texts = [text_of(lines_for(each.plan, base, unquantized)) for each in made]
    for file, text in zip(files, texts, strict=True):
        with write_aside(file) as aside:
            aside.write_text(text, encoding="utf-8")
        yield f"llama-quantize --pure --tensor-type-file {file} {base or 'BASE.gguf'} OUTPUT.gguf q8_0"
