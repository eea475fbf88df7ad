"""Write config.yaml, config.schema.json and the generated pages of docs/ from their sources, or check that they match.

For example:

    python scripts/write_config.py --fix
"""

from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

from bitplan.cli.parser import parser, run

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent


def parsers() -> dict[str, ArgumentParser]:
    """Return the parsers of `bitplan`'s commands and of all scripts, by the names that are typed."""
    from bitplan.console.main import COMMANDS

    commands = [path.stem for path in sorted(SCRIPTS.glob("*.py")) if '__name__ == "__main__"' in path.read_text()]
    modules = {
        **{f"bitplan {name}": f"bitplan.console.{name}" for name in COMMANDS},
        **{f"{name}.py": name for name in commands},
    }
    return {name: import_module(module).build_parser() for name, module in modules.items()}


def generated() -> dict[str, str]:
    """Return the generated files, by their paths from the project's folder."""
    from bitplan.cli.reference import flags_page
    from bitplan.config.settings_page import settings_page
    from bitplan.config.yaml_file import config_text, schema_text
    from bitplan.core.error_codes import errors_page

    return {
        "config.yaml": config_text(),
        "config.schema.json": schema_text(),
        "docs/errors.md": errors_page(),
        "docs/reference/settings.md": settings_page(),
        "docs/reference/flags.md": flags_page(parsers()),
    }


def main(args) -> None:
    """Write the files, or raise `UserError` for one that is not current."""
    from bitplan.core.errors import user_error
    from bitplan.core.files import write_aside

    for name, text in generated().items():
        path = ROOT / name
        if args.fix:
            with write_aside(path) as aside:
                aside.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise user_error(
                "SETTINGS-OUTDATED", path, "does not match its source", "Run scripts/write_config.py --fix"
            )


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--fix", action="store_true", help="write them")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)
