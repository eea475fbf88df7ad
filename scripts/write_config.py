"""Write config.yaml and config.schema.json from the settings models, or check that they are as the models say."""

from pathlib import Path

from bitplan.cli.parser import parser, run

ROOT = Path(__file__).resolve().parents[1]


def main(args) -> None:
    from bitplan.config.yaml_file import config_text, schema_text
    from bitplan.core.errors import user_error
    from bitplan.core.files import write_aside

    for name, text in {"config.yaml": config_text(), "config.schema.json": schema_text()}.items():
        path = ROOT / name
        if args.fix:
            with write_aside(path) as aside:
                aside.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise user_error(path, "is not what the settings models say", "Run scripts/write_config.py --fix")


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument("--fix", action="store_true", help="write them")
    run(flags, main)
