"""What settings are made of: sections that refuse unknown keys, names, paths, and how a setting is spelt as a flag."""

import os
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bitplan.core.sizes import parse_size

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]


def _path(path: str) -> str:
    """Return a path with `~` expanded. Raises ValueError for one with braces, which Snakemake takes for a wildcard."""
    if "{" in path or "}" in path:
        raise ValueError(
            "has braces, which Snakemake takes for a wildcard: rename the file, or give a link to it without them"
        )
    return os.path.expanduser(path)


def _amount(text: str) -> str:
    """Return an amount of bytes as it is written. Raises ValueError for what is none."""
    parse_size(text)
    return text


Amount = Annotated[str, AfterValidator(_amount)]
PathName = Annotated[str, AfterValidator(_path)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, numbers may come as strings (--config gives them so)."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=False, allow_inf_nan=False)


@dataclass(frozen=True)
class Flag:
    """How a setting becomes a command's flag if its name and type do not say; used in `Annotated[type, Flag(...)]`.

    `name`: the flag's name without dashes if it differs from the setting's. `null`: the word for null; without one, null gives no flag.
    `empty`: the switch that stands for an empty list. `switch`: given when true, absent when false. `when`: a setting of the same
    section and the value that it must have for the flag to be given. `by_rule`: a rule passes it in its own way, as a file, or beside what Snakemake records.
    `other_step`: the section's command does not take it; a later step reads it from the settings.
    """

    name: str = ""
    null: str = ""
    empty: str = ""
    switch: bool = False
    when: tuple[str, str] | None = None
    by_rule: bool = False
    other_step: bool = False
