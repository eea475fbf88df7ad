"""Runs commands in forks of a process that has imported what they import: most of their seconds are work that can be killed.

Reads one JSON object a line: `words` (script and flags), `folder`, `log`. Answers with the fork's process id at once, and with its
exit code when it has ended. Each fork leads a process group of its own.
"""

import importlib
import json
import os
import runpy
import sys
import traceback

HEAVY = (
    "torch",
    "transformers",
    "safetensors.torch",
    "gguf",
    "llama_cpp",
    "scipy.optimize",
    "matplotlib.pyplot",
    "pandas",
)


def begin_(request: dict) -> None:
    """Make this process what a shell would have started."""
    os.setsid()
    os.chdir(request["folder"])
    os.makedirs(os.path.dirname(request["log"]), exist_ok=True)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, handle in ((0, nothing), (1, log), (2, log)):
        os.dup2(handle, stream)
    sys.argv = list(request["words"])
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))


def ended(request: dict) -> int:
    """Run the command and return its exit code."""
    begin_(request)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = ended(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(child, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)


if __name__ == "__main__":
    main()
