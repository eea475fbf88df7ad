"""The `bitplan` program: `bitplan COMMAND ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "quantize": "from a model to a smaller file: find the plan, write it, say what it costs",
    "plan": "find the plan only",
    "export": "write a plan that is there already as a file",
    "compare": "run a folder's config.yaml up to the comparison page",
    "init": "write a config.yaml for a model, to edit",
    "estimate": "say what a model's steps will take here: time, memory, disk",
    "doctor": "check whether this machine has what is needed",
}
EXAMPLES = """examples:
  bitplan quantize Qwen/Qwen2.5-0.5B --text my-text.txt --same-size-as q4_k_m -o small.gguf
  bitplan quantize ./model --text my-text.txt --max-size 4GB -o small.gguf
  bitplan export plan.json --model ./model -o small.gguf
  bitplan doctor"""


def usage() -> str:
    """Return the program's help."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {meaning}" for name, meaning in COMMANDS.items())
    return "\n".join(
        ("usage: bitplan COMMAND [flags]", "", *lines, "", "bitplan COMMAND --help lists its flags", "", EXAMPLES)
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run a command of the program; exit with 2 for an unknown one."""
    name, *rest = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    if name in ("--help", "-h", "--version"):
        from bitplan import __version__

        print(f"bitplan {__version__}" if name == "--version" else usage())
        return
    if name not in COMMANDS:
        from bitplan.core.errors import nearest

        told = (f"error: {name!r} is not a command.", nearest(name, COMMANDS, 1), "bitplan --help lists them")
        print(" ".join(filter(None, told)), file=sys.stderr)
        sys.exit(2)
    from bitplan.cli.parser import run

    command = import_module(f"bitplan.console.{name}")
    flags = command.build_parser()
    flags.prog = f"bitplan {name}"
    sys.argv[:] = [flags.prog, *rest]
    run(flags, command.main)


if __name__ == "__main__":
    main()
