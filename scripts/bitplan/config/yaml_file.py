"""The commented `config.yaml` and the JSON schema, both made from the settings models."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bitplan.config.plan_settings import METHODS
from bitplan.config.settings import Settings
from bitplan.search.sparsegpt.score_weights import WEIGHTS

HEAD = (
    "# Settings of the workflow. Every key is here with its default, meaning and range.\n"
    "# Another file can change some: snakemake --configfile mine.yaml (mappings merge, lists replace).\n"
)
SPARSEGPT = {"method": "sparsegpt", "bit_allocation_method": "budget", "target_avg_bits": 3.0}
UNIFORM = {"bit_allocation_method": "uniform"}
ROUNDED = {**UNIFORM, "compensate": False}
STUDIES: dict[str, Any] = {
    "scores": {
        "plan": SPARSEGPT,
        "vary": {
            "weights": {"all": dict(WEIGHTS), **{name: {name: 1.0} for name in WEIGHTS}},
            "bit_allocation_method": ["quantile", "optimal"],
        },
        "also": {"gptq": UNIFORM, "rtn": ROUNDED},
        "x": "weights",
    },
    "bits": {
        "plan": SPARSEGPT,
        "vary": {
            "target_avg_bits": [2.5, 3.0, 3.5, 4.0, 4.5, 5.0],
            "bit_allocation_method": ["quantile", "budget", "optimal"],
        },
        "also": {
            f"{name}-{bits}": {**how, "target_avg_bits": bits}
            for name, how in (("gptq", UNIFORM), ("rtn", ROUNDED))
            for bits in (2, 3, 4, 5)
        },
        "x": "avg_bits_layers",
    },
    "sparsity": {
        "plan": {**SPARSEGPT, "target_avg_bits": 4.0},
        "vary": {
            "sparsity": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            "compensate": {"sparsegpt": True, "magnitude": False},
        },
        "x": "sparsity",
    },
}
DEMO: dict[str, Any] = {
    "models": {
        "demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"}
    },
    "plans": {
        "adaptive-conservative": {
            "method": "adaptive",
            "ppl_threshold": 0.05,
            "target_avg_bits": 10.0,
            "step_size": 0.3,
        },
        "adaptive-balanced": {"method": "adaptive", "ppl_threshold": 0.1, "target_avg_bits": 8.0, "step_size": 0.5},
        "adaptive-aggressive": {"method": "adaptive", "ppl_threshold": 0.2, "target_avg_bits": 6.0, "step_size": 0.8},
        "random-high-compression": {"method": "random", "mxfp4_ratio": 0.3, "bf16_ratio": 0.1, "seed": 123},
        "random-balanced": {"method": "random", "mxfp4_ratio": 0.25, "bf16_ratio": 0.25, "seed": 456},
        "random-high-precision": {"method": "random", "mxfp4_ratio": 0.1, "bf16_ratio": 0.4, "seed": 789},
        "genetic-w4a48": {"method": "genetic", "target_compression": 0.75},
        "genetic-6bit": {
            "method": "genetic",
            "target_avg_bits": 6.0,
            "palette": ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"],
            "metric": "relative_mse",
        },
        "optimal-6bit": {"method": "optimal", "target_avg_bits": 6.0},
        "sparsegpt-4bit": {"method": "sparsegpt", "target_avg_bits": [4.0], "bit_allocation_method": "budget"},
    },
    "studies": STUDIES,
    "sensitivity": {
        "anchors": "all",
        "embeddings": ["q4_k", "q5_k", "q6_k", "q8_0"],
        "palette": ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0"],
    },
    "speed": {"max_tokens": 64, "repeats": 3},
}


def _range(field: FieldInfo) -> str:
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


def _value(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        .strip()
        .removesuffix("\n...")
        .strip()
    )


def _comment(field: FieldInfo) -> str:
    bounds = _range(field)
    return f"# {field.description}{f' ({bounds})' if bounds else ''}"


def _section(model: type[BaseModel], values: Mapping[str, Any], indent: int) -> Iterator[str]:
    """Yield the lines of a section: every field with its value here or its default."""
    for name, field in model.model_fields.items():
        value = values.get(name, field.get_default(call_default_factory=True))
        value = value.model_dump() if isinstance(value, BaseModel) else value
        yield f"{' ' * indent}{name}: {_value(value)} {_comment(field)}"


def _method_lines() -> Iterator[str]:
    for name, model in METHODS.items():
        yield f"  # method {name}:"
        for key, field in model.model_fields.items():
            if key != "method":
                default = field.get_default(call_default_factory=True)
                shown = default.model_dump() if isinstance(default, BaseModel) else default
                yield f"  #   {key}: {_value(shown)} {_comment(field)}"


def _lines() -> Iterator[str]:
    fields = Settings.model_fields
    yield f"models: {_comment(fields['models'])}"
    for name, values in DEMO["models"].items():
        yield f"  {name}:"
        yield from _section(type_of("models"), values, 4)
    yield f"\nplans: {_comment(fields['plans'])}"
    yield from _method_lines()
    for name, values in DEMO["plans"].items():
        yield f"  {name}: {_value(values)}"
    yield f"\nstudies: {_comment(fields['studies'])}; made by the target studies, not by default"
    for key, field in type_of("studies").model_fields.items():
        yield f"  #   {key}: {_comment(field).removeprefix('# ')}"
    for name, values in DEMO["studies"].items():
        yield f"  {name}:"
        yield from (f"    {key}: {_value(value)}" for key, value in values.items())
    yield f"\nbaselines: {_value(fields['baselines'].default)} {_comment(fields['baselines'])}"
    yield f"\nimatrix: {_value(fields['imatrix'].default)} {_comment(fields['imatrix'])}"
    yield f"\nbos: {_value(fields['bos'].default)} {_comment(fields['bos'])}"
    sections = ("calibration", "validation", "evaluation", "sensitivity", "rounding", "export", "speed", "tasks")
    for name in ("compute", *sections):
        default = fields[name].default.model_dump()
        yield f"\n{name}: {_comment(fields[name])}"
        yield from _section(type(fields[name].default), {**default, **DEMO.get(name, {})}, 2)


def type_of(section: str) -> type[BaseModel]:
    """Return the model of the entries of a mapping section."""
    return Settings.model_fields[section].annotation.__args__[1]


def config_text() -> str:
    """Return the content of `config.yaml`: the demo's settings, every key with a comment."""
    return HEAD + "\n" + "\n".join(_lines()) + "\n"


def schema_text() -> str:
    """Return the content of `config.schema.json`, for editors that complete and check YAML."""
    return json.dumps(Settings.model_json_schema(), indent=2, sort_keys=True) + "\n"
