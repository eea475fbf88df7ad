"""`bitplan doctor`: whether this machine has what the workflow, or a model, needs."""

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitplan.cli.parser import parser
from bitplan.console.run_hint import SERVER
from bitplan.core.places import scripts_folder

GIB = 2**30
ABOUT = """Check whether this machine has what the workflow needs.

For example:

    bitplan doctor
    bitplan doctor ./model
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was seen, whether it will do, and what to do where it will not. Without what is `optional` the
    workflow runs."""

    name: str
    seen: str
    good: bool = True
    advice: str = ""
    optional: bool = False


def _python() -> Finding:
    return Finding("Python", sys.version.split()[0], sys.version_info >= (3, 11), "Install Python 3.11 or newer")


def _packages() -> Finding:
    from importlib import metadata

    names = ("torch", "transformers", "snakemake", "gguf", "llama-cpp-python")
    seen, missing = [], []
    for name in names:
        try:
            seen.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    return Finding("packages", ", ".join(seen + [f"no {name}" for name in missing]), not missing, "Run `make setup`")


def _compiler() -> Finding:
    path = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    return Finding(
        "C++ compiler", path or "none", path is not None, "Install g++ or clang++: torch and llama.cpp use it"
    )


def _converter() -> Finding:
    from bitplan.core.errors import UserError
    from bitplan.runtimes.gguf.convert import converter_folder

    try:
        return Finding("llama.cpp's converter", str(converter_folder()))
    except UserError as error:
        advice = f"Run {sys.executable} {scripts_folder() / 'set_up.py'} --converter-only"
        return Finding("llama.cpp's converter", str(error.problems[0].where), False, advice)


def _server() -> Finding:
    path = shutil.which(SERVER)
    advice = (
        "Files run in llama-cpp-python, too. It comes with llama.cpp: brew install llama.cpp, winget install llama.cpp, or"
        " https://github.com/ggml-org/llama.cpp/releases"
    )
    return Finding(f"{SERVER} (to serve a file)", path or "none", path is not None, advice, optional=True)


def _processor() -> Finding:
    return Finding(
        "processor cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    )


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / GIB
    return Finding("free memory", f"{free:.1f} GiB", free >= 4, "A walk needs about 3 GiB and one block of the model")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    return Finding("free disk space here", f"{free:.1f} GiB", free >= 2, "Results need about twice the model's size")


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    return Finding("GPU", "none; models run on the processor (compute.device: cpu)")


CHECKS: tuple[Callable[[], Finding], ...] = (
    *(_python, _packages, _compiler, _converter, _server),
    *(_processor, _memory, _disk, _gpu),
)


def findings() -> Iterator[Finding]:
    """Yield what every check saw."""
    yield from (check() for check in CHECKS)


def line_of(finding: Finding) -> str:
    """Return a finding as one line, with the advice where it will not do."""
    mark = "ok     " if finding.good else "absent " if finding.optional else "missing"
    return f"{mark} {finding.name}: {finding.seen}" + ("" if finding.good else f". {finding.advice}")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(ABOUT)
    told = "a model to estimate: what its steps will take here, and whether memory and disk are enough"
    flags.add_argument("model", nargs="?", help=told)
    return flags


def _of_model(model: str) -> Iterator[Finding]:
    """Yield what a model needs of this machine."""
    import psutil

    from bitplan.console.estimate import estimate_of

    made = estimate_of(model)
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(Path.cwd()).free
    needs = made.total["memory"], made.total["disk"]
    advice = f"It needs {needs[0] / GIB:.1f} GiB of memory and {needs[1] / GIB:.1f} GiB of disk"
    yield Finding("estimate", made.line, needs[0] < memory and needs[1] < disk, advice)


def main(args: Namespace) -> None:
    """Print a line for each thing that was looked at; exit with 1 where one is missing that is not optional."""
    seen = [*findings(), *(_of_model(args.model) if args.model else ())]
    print("\n".join(map(line_of, seen)))
    if not all(finding.good or finding.optional for finding in seen):
        sys.exit(1)
