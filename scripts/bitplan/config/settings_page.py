"""The page of all settings, written from their models: docs/reference/settings.md."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bitplan.config.settings import Settings
from bitplan.config.yaml_file import range_of, type_of, value_text
from bitplan.search.plan_settings import PlanSettings
from bitplan.search.registry import METHODS

HEAD = """# Settings

Every key of [config.yaml](../../config.yaml) with its default, range and meaning, written from the same models by `scripts/write_config.py --fix`. Your own file names only what differs:
`snakemake --configfile mine.yaml` merges mappings and replaces lists. A wrong key or value is refused by name before anything runs.
"""
COLUMNS = "| key | default | range | meaning |\n|---|---|---|---|"
WHOLE = ("baselines", "imatrix", "bos")


def _cell(text: str) -> str:
    return text.replace("|", ",").replace(" ,", ",").replace("*", r"\*")


def _row(name: str, field: FieldInfo) -> str:
    value = "required" if field.is_required() else field.get_default(call_default_factory=True)
    shown = value.model_dump() if isinstance(value, BaseModel) else value
    default = "required" if field.is_required() else f"`{value_text(shown)}`"
    return f"| `{name}` | {default} | {_cell(range_of(field))} | {_cell(field.description or '')} |"


def _table(model: type[BaseModel], leave_out: tuple[str, ...] = ()) -> str:
    rows = (_row(name, field) for name, field in model.model_fields.items() if name not in leave_out)
    return "\n".join((COLUMNS, *rows))


def _methods() -> Iterator[str]:
    shared = ("method", *PlanSettings.model_fields)
    for name, method in METHODS.items():
        yield f"### method: {name}\n\n{_table(method.settings, shared)}"
    yield f"### every method\n\n{_table(PlanSettings)}\n\nThe keys of `check`:\n\n{_table(type(PlanSettings().check))}"


def _sections() -> Iterator[str]:
    fields = Settings.model_fields
    yield f"## models\n\n{fields['models'].description}; while none is named, the bundled model of demo/config.yaml.\n\n{_table(type_of('models'))}"
    yield f"## plans\n\n{fields['plans'].description}."
    yield from _methods()
    yield f"## studies\n\n{fields['studies'].description}; made by the target `studies`, not by default.\n\n{_table(type_of('studies'))}"
    yield "## The whole workflow\n\n" + "\n".join((COLUMNS, *(_row(name, fields[name]) for name in WHOLE)))
    for name in fields:
        if name not in (*WHOLE, "models", "plans", "studies"):
            yield f"## {name}\n\n{_cell(fields[name].description or '')}.\n\n{_table(type(fields[name].default))}"


def settings_page() -> str:
    """Return docs/reference/settings.md: a table for each section, and one for each method of plans."""
    return "\n\n".join((HEAD.rstrip(), *_sections())) + "\n"
