"""Checks of a `config.json` or `plan.json` before it is expanded: keys, types, formats, patterns."""

from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.core.errors import Problem, UserError, nearest
from bitplan.formats.base import Format
from bitplan.formats.table import PER_CHANNEL
from bitplan.models.layer_patterns import match_layers, nearest_layers
from bitplan.models.layers import Layer
from bitplan.plans.embeddings import embedding_problems
from bitplan.plans.fitting import SUBSTITUTE

# The keys of an override besides its pattern; all others are errors.
FORMAT_KEYS = ("wq", "aq", "group_size", "skip", "stored_bits", "embeddings")
NOTES = ("alpha_hill", "category", "precision", SUBSTITUTE)
# Keys of overrides in earlier versions.
RENAMED = {"outside": 'It was renamed to "embeddings"'}
SUMMARY = "summary"
# The name of the summary in the config.json of the adaptive search, by its document.
SEARCH_SUMMARY = "search_summary"
SUMMARIES = (SEARCH_SUMMARY, SUMMARY)
KEYS = ("default", "overrides", *SUMMARIES, "model_fingerprint", "schema_version", "smoothing", "compressed", "rounded")


def _entry_problems(where: str, entry: Mapping[str, Any], formats: Mapping[str, Format]) -> list[Problem]:
    known = ("pattern", *FORMAT_KEYS, *NOTES)
    problems = [
        Problem("PLAN-UNKNOWN-KEY", f"{where}.{key}", "unknown key", RENAMED.get(key) or nearest(key, known))
        for key in entry
        if key not in known
    ]
    for key in ("wq", "aq"):
        if key in entry and not (isinstance(entry[key], str) and entry[key] in formats):
            hint = nearest(str(entry[key]), formats) or f"Known: {', '.join(formats)}"
            problems.append(Problem("PLAN-UNKNOWN-FORMAT", f"{where}.{key}", f"unknown format {entry[key]!r}", hint))
        elif key == "aq" and key in entry and not formats[entry[key]].for_activations:
            what, hint = f"{entry[key]} is a format for weights only", "Use mxfp*, int*_asym, int*_token or bf16"
            problems.append(Problem("PLAN-WEIGHTS-ONLY", f"{where}.{key}", what, hint))
    problems += _channel_problems(where, entry)
    group, skip = entry.get("group_size", 1), entry.get("skip", True)
    if not isinstance(group, int) or isinstance(group, bool) or group < 1:
        what = f"{group!r} is not a positive integer"
        problems.append(Problem("PLAN-BAD-GROUP", f"{where}.group_size", what, "Use e.g. 32"))
    if not isinstance(skip, bool):
        what = f"{skip!r} is not true or false"
        problems.append(Problem("PLAN-NOT-BOOLEAN", f"{where}.skip", what, "Use true, or remove the key"))
    return problems


def _channel_problems(where: str, entry: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of a layer's stored bits, which the format `per_channel` requires and others do not allow."""
    bits = entry.get("stored_bits")
    if entry.get("wq") != PER_CHANNEL:
        what, hint = f"is valid for the format {PER_CHANNEL} only", "Remove it"
        return [] if bits is None else [Problem("PLAN-BAD-BITS", f"{where}.stored_bits", what, hint)]
    if isinstance(bits, int) and not isinstance(bits, bool) and bits > 0:
        return []
    hint = "scripts/sparsegpt_enhanced.py writes such plans"
    return [Problem("PLAN-BAD-BITS", f"{where}.stored_bits", f"{bits!r} is not a number of bits", hint)]


def _target_problems(source: str, config: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each target in a summary that is not a number."""
    targets = {key: config[key].get("target_avg_bits", 1) for key in SUMMARIES if isinstance(config.get(key), dict)}
    hint = "Use e.g. 8.0, or remove the key"
    return [
        Problem("PLAN-BAD-TARGET", f"{source}: {key}.target_avg_bits", f"{target!r} is not a number", hint)
        for key, target in targets.items()
        if isinstance(target, bool) or not isinstance(target, (int, float))
    ]


def _check_shape(source: str, config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless a configuration has only known keys, with objects and lists where they are expected."""
    problems = [
        Problem(
            "PLAN-UNKNOWN-KEY", f"{source}: {key}", "unknown key", nearest(key, KEYS) or f"Known: {', '.join(KEYS)}"
        )
        for key in config
        if key not in KEYS
    ]
    for key in ("default", *SUMMARIES):
        if not isinstance(config.get(key, {}), dict):
            what = f"{config[key]!r} is not an object"
            problems.append(Problem("PLAN-NOT-OBJECT", f"{source}: {key}", what, "Write it as {...}"))
    problems += _target_problems(source, config)
    for key in ("smoothing", "compressed", "rounded"):
        reference = config.get(key, {"sha256": ""})
        if not isinstance(reference, dict) or not isinstance(reference.get("sha256"), str):
            hint = "Run the search again, which writes it"
            problems.append(Problem("PLAN-NOT-OBJECT", f"{source}: {key}", "is not an object with a sha256", hint))
    overrides = config.get("overrides", [])
    if not isinstance(overrides, list):
        hint = 'Write it as [{"pattern": ..., "wq": ...}]'
        problems.append(Problem("PLAN-NOT-LIST", f"{source}: overrides", "is not a list", hint))
    for number, entry in enumerate(overrides if isinstance(overrides, list) else []):
        if not isinstance(entry, dict) or not isinstance(entry.get("pattern"), str):
            hint = 'Write it as {"pattern": "*.mlp.*", "wq": "mxfp4"}'
            what = "is not an object with a pattern (string)"
            problems.append(Problem("PLAN-NOT-OBJECT", f"{source}: overrides[{number}]", what, hint))
    if problems:
        raise UserError(problems)


def check_config(
    source: str, config: Mapping[str, Any], layers: Sequence[Layer], formats: Mapping[str, Format]
) -> None:
    """Raise `UserError` with everything that is wrong with a configuration of a model with these layers."""
    _check_shape(source, config)
    names, overrides = [layer.name for layer in layers], config.get("overrides", [])
    problems = _entry_problems(f"{source}: default", config.get("default", {}), formats)
    problems += embedding_problems(f"{source}: default", config.get("default", {}), layers, formats)
    for number, entry in enumerate(overrides):
        problems += _entry_problems(f"{source}: overrides[{number}]", entry, formats)
        problems += embedding_problems(f"{source}: overrides[{number}]", entry, layers, formats)
        if not match_layers(entry["pattern"], names):
            what = f"pattern {entry['pattern']!r} matches no layer"
            hint = nearest_layers(entry["pattern"], names)
            problems.append(Problem("PLAN-NO-MATCH", f"{source}: overrides[{number}]", what, hint))
    if problems:
        raise UserError(problems)
