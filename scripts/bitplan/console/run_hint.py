"""How to run a quantized file with what is installed here."""

import json
import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from bitplan.runtimes.runtime import Runtime

SERVER = "llama-server"
# What `python -m llama_cpp.server` imports: extras of llama-cpp-python.
SERVER_PACKAGES = ("llama_cpp", "fastapi", "uvicorn", "starlette_context", "sse_starlette", "pydantic_settings")
PROGRAM = (
    "from llama_cpp import Llama; "
    'print(Llama({file}, verbose=False)("Once upon a time", max_tokens=64)["choices"][0]["text"])'
)


def _python() -> str:
    """Return this interpreter as it is called from the working directory: by the shorter of its two paths."""
    return shlex.quote(min(sys.executable, os.path.relpath(sys.executable), key=len))


def with_python(file: Path) -> str:
    """Return a command of this environment that runs a GGUF file: llama-cpp-python's server where its extras are installed, else a program that
    continues a text."""
    if all(map(find_spec, SERVER_PACKAGES)):
        return f"{_python()} -m llama_cpp.server --model {shlex.quote(str(file))}"
    return f"{_python()} -c {shlex.quote(PROGRAM.format(file=json.dumps(str(file))))}"


def run_lines(runtime: Runtime, output: Path, name: str) -> list[str]:
    """Return how to run a file, called `name`, in a runtime: for a GGUF file in one line where llama.cpp's server is installed."""
    if runtime.name != "gguf":
        return runtime.how_to_run(output, name).splitlines()
    server = f"{SERVER} -m {shlex.quote(str(output))}"
    if shutil.which(SERVER):
        return [f"Run it: {server}"]
    return [
        f"Run it: {with_python(output)}",
        f"or, with llama.cpp's programs (not installed here; `bitplan doctor` says where they are): {server}",
    ]
