"""The commented `config.yaml` and the JSON schema, both made from the settings models."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bitplan.config.settings import Settings
from bitplan.search.plan_settings import PlanSettings
from bitplan.search.registry import METHODS

HEAD = (
    "# Settings of the workflow. Every key is here with its default, meaning and range.\n"
    "# Another file can change some: snakemake --configfile mine.yaml (mappings merge, lists replace).\n"
)
# A model of one's own, as it is shown in the file: as comments, so that the demo runs until somebody names one.
EXAMPLE = {"path": "path/to/checkpoint", "calibration": "calibration.txt", "evaluation": "evaluation.txt"}


def range_of(field: FieldInfo) -> str:
    """Return a field's bounds or choices in words."""
    words = {
        "Ge": "at least {0.ge:g}",
        "Gt": "more than {0.gt:g}",
        "Le": "at most {0.le:g}",
        "Lt": "less than {0.lt:g}",
    }
    bounds = [words[type(m).__name__].format(m) for m in field.metadata if type(m).__name__ in words]
    choices = [str(choice) for choice in _choices(field.annotation)]
    # The description of a setting with recipes says what their second name means.
    doubled = {f"{choice}_imatrix" for choice in choices}
    return ", ".join(bounds) or " | ".join(choice for choice in choices if choice not in doubled)


def _choices(annotation: Any) -> tuple:
    """Return the values of the literals in an annotation."""
    parts = get_args(annotation)
    return parts if get_origin(annotation) is Literal else tuple(value for part in parts for value in _choices(part))


def value_text(value: Any) -> str:
    """Return a value as YAML in one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        .strip()
        .removesuffix("\n...")
        .strip()
    )


def _comment(field: FieldInfo) -> str:
    bounds = range_of(field)
    return f"# {field.description}{f' ({bounds})' if bounds else ''}"


def _section(model: type[BaseModel], values: Mapping[str, Any], indent: int) -> Iterator[str]:
    """Yield the lines of a section: every field with its value here or its default."""
    for name, field in model.model_fields.items():
        value = values.get(name, field.get_default(call_default_factory=True))
        value = value.model_dump() if isinstance(value, BaseModel) else value
        yield f"{' ' * indent}{name}: {value_text(value)} {_comment(field)}"


def _method_lines() -> Iterator[str]:
    for name, method in METHODS.items():
        yield f"  # method {name}:"
        fields = method.settings.model_fields
        own = [key for key in fields if key not in PlanSettings.model_fields and key != "method"]
        for key in (*own, *PlanSettings.model_fields):
            default = fields[key].get_default(call_default_factory=True)
            shown = default.model_dump() if isinstance(default, BaseModel) else default
            yield f"  #   {key}: {value_text(shown)} {_comment(fields[key])}"


def _lines() -> Iterator[str]:
    fields = Settings.model_fields
    yield f"models: {_comment(fields['models'])}; while none is named here or elsewhere, demo/config.yaml"
    yield "  # mine:"
    yield from (f"  #   {line.strip()}" for line in _section(type_of("models"), EXAMPLE, 0))
    yield f"\nplans: {_comment(fields['plans'])}"
    yield from _method_lines()
    yield f"\nstudies: {_comment(fields['studies'])}; made by the target studies, not by default"
    for key, field in type_of("studies").model_fields.items():
        yield f"  #   {key}: {_comment(field).removeprefix('# ')}"
    for name in ("baselines", "imatrix", "bos"):
        yield f"\n{name}: {value_text(fields[name].default)} {_comment(fields[name])}"
    for name in (
        "compute",
        "calibration",
        "validation",
        "evaluation",
        "sensitivity",
        "rounding",
        "export",
        "speed",
        "tasks",
    ):
        yield f"\n{name}: {_comment(fields[name])}"
        yield from _section(type(fields[name].default), fields[name].default.model_dump(), 2)


def type_of(section: str) -> type[BaseModel]:
    """Return the model of the entries of a mapping section."""
    return Settings.model_fields[section].annotation.__args__[1]


def config_text() -> str:
    """Return the content of `config.yaml`: every setting with its default, and a comment."""
    return HEAD + "\n" + "\n".join(_lines()) + "\n"


def schema_text() -> str:
    """Return the content of `config.schema.json`, for editors that complete and check YAML."""
    return json.dumps(Settings.model_json_schema(), indent=2, sort_keys=True) + "\n"
