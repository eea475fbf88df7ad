"""Flags made from the settings models, and settings turned into flags: a setting is declared once, in its model.

`add_settings_flags` gives a command the flags of a model: type, range, choices, default and help of each are the setting's. Where a
command differs, as the documents' defaults do, its parser says so in an override. `flag_values` gives the words of the same flags.
"""

import argparse
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bitplan.config.flag_types import ListAction, named, number, or_word
from bitplan.core.section import Flag, Section

BOUNDS = {"ge": ("low", "open_low", False), "gt": ("low", "open_low", True), "le": ("high", "open_high", False),
          "lt": ("high", "open_high", True)}  # fmt: skip


def _is_flag(name: str, field: FieldInfo) -> bool:
    """Return whether a setting is a flag: no section of its own, no method's name, and nothing that another step reads."""
    nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    return name != "method" and not nested and not style_of(field).other_step


def style_of(field: FieldInfo) -> Flag:
    """Return how a setting is spelt as a flag."""
    return next((each for each in field.metadata if isinstance(each, Flag)), Flag())


def flag_name(name: str, field: FieldInfo) -> str:
    """Return a setting's flag without its dashes."""
    return style_of(field).name or name.replace("_", "-")


def _plain(annotation: Any, metadata: Collection[Any] = ()) -> tuple[Any, list[Any]]:
    """Return a type without `Annotated` and None, and the constraints on it."""
    constraints = [each for item in metadata for each in (item.metadata if isinstance(item, FieldInfo) else (item,))]
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _plain(inner, [*constraints, *more])
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not NoneType]
        if len(parts) == 1:
            return _plain(parts[0], constraints)
    return annotation, constraints


def _number_of(kind: type, constraints: Collection[Any]) -> Callable[[str], float]:
    bounds: dict[str, Any] = {}
    for constraint in constraints:
        for key, (end, opened, value) in BOUNDS.items():
            if hasattr(constraint, key):
                bounds |= {end: getattr(constraint, key), opened: value}
    return number(kind=kind, **bounds)


def _value_type(annotation: Any, metadata: Collection[Any] = ()) -> Callable[[str], Any]:
    """Return the argparse type of one value of a setting; text is checked by the command, which names what is wrong with all of it."""
    kind, constraints = _plain(annotation, metadata)
    if get_origin(kind) in (Union, UnionType):
        parts = get_args(kind)
        words = {str(word): word for part in parts if get_origin(part) is Literal for word in get_args(part)}
        return or_word(_value_type(next(part for part in parts if get_origin(part) is not Literal)), words)
    return _number_of(kind, constraints) if kind in (int, float) else str


def _of_several(kind: Any) -> dict[str, Any]:
    """Return the argparse arguments of a list, or of a mapping given as NAME=VALUE."""
    if get_origin(kind) is dict:
        return {"type": named(_value_type(get_args(kind)[1])), "metavar": "NAME=VALUE"}
    return {"type": _value_type(get_args(kind)[0])}


def _arguments(field: FieldInfo) -> dict[str, Any]:
    """Return what argparse is told about a setting."""
    kind, _ = _plain(field.annotation, field.metadata)
    style, default = style_of(field), field.get_default(call_default_factory=True)
    common = {"help": (field.description or "").replace("%", "%%"), "default": default}
    if kind is bool:
        return {**common, "action": "store_true" if style.switch else argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {**common, "choices": tuple(map(str, get_args(kind)))}
    if get_origin(kind) in (list, dict):
        values = list(default.items()) if isinstance(default, dict) else default
        return {**common, "default": values, "action": ListAction, "nargs": "+", **_of_several(kind)}
    one = _value_type(field.annotation, field.metadata)
    if style.null:
        return {**common, "type": or_word(one, {style.null: None}), "metavar": f"COUNT|{style.null}"}
    return {**common, "type": one}


def add_settings_flags(
    parser: argparse.ArgumentParser, model: type[Section], only: Collection[str] = (), **overrides: Mapping[str, Any]
) -> None:
    """Add the flags of a model's settings, or of some `only`. An override replaces arguments of argparse for the setting of its name."""
    unknown = {*only, *overrides} - set(model.model_fields)
    if unknown:
        raise ValueError(f"{model.__name__} has no {', '.join(sorted(unknown))}")
    for name, field in model.model_fields.items():
        if _is_flag(name, field) and (not only or name in only):
            parser.add_argument(f"--{flag_name(name, field)}", **{**_arguments(field), **overrides.get(name, {})})


def choices_of(model: type[Section], name: str) -> tuple[str, ...]:
    """Return the words that a setting may be."""
    return tuple(map(str, get_args(_plain(model.model_fields[name].annotation)[0])))


def _value(value: Any) -> Any:
    return [f"{name}={one}" for name, one in value.items()] if isinstance(value, Mapping) else value


def flag_values(section: Section, only: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of a section's flags by their names, as `cli_flags` takes them; of all, or of some `only`. Without those that a
    rule passes in its own way."""
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        style, value = style_of(field), getattr(section, name)
        wanted = style.when is None or getattr(section, style.when[0]) == style.when[1]
        if style.by_rule or not _is_flag(name, field) or (only and name not in only) or not wanted:
            continue
        if style.empty and value == []:
            values[style.empty] = True
        elif style.switch:
            values[flag_name(name, field)] = value or None
        else:
            values[flag_name(name, field)] = (style.null or None) if value is None else _value(value)
    return values


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(values):
        value, flag = values[key], f"--{key}"
        if value is None:
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{key}"
            continue
        for item in value if isinstance(value, (list, tuple)) else (value,):
            yield from (flag, str(item))


def cli_flags(values: Mapping[str, Any]) -> str:
    """Return settings as one sorted string of flags: lists repeat the flag, booleans are --x/--no-x, None is left out."""
    return shlex.join(_words(values))
