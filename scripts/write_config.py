"""Write config.yaml, config.schema.json and docs/errors.md from their sources, or check that they match.

For example:

    python scripts/write_config.py --fix
"""

from argparse import ArgumentParser
from pathlib import Path

from bitplan.cli.parser import parser, run

ROOT = Path(__file__).resolve().parents[1]


def main(args) -> None:
    from bitplan.config.yaml_file import config_text, schema_text
    from bitplan.core.error_codes import errors_page
    from bitplan.core.errors import user_error
    from bitplan.core.files import write_aside

    generated = {"config.yaml": config_text(), "config.schema.json": schema_text(), "docs/errors.md": errors_page()}
    for name, text in generated.items():
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
