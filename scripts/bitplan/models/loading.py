"""Which tensors of a checkpoint its model loads, and into which parameters, by transformers' own naming rules.

Checkpoints may store tensors that the model of config.json does not use: blocks for multi-token prediction, vision and audio
towers, adapters, value heads, pruned blocks. Wrappers also add prefixes to all names.
"""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitplan.models.built import build
from bitplan.models.experts import separate_experts_
from bitplan.models.families import BUFFERS, stored_names

# Prefixes that wrappers add to names: torch.compile, DistributedDataParallel, PEFT, multimodal models.
WRAPPERS: tuple[tuple[str, str], ...] = (
    (r"(^|(?<=\.))_orig_mod\.", ""),
    (r"^(module\.)+", ""),
    (r"^base_model\.model\.", ""),
    (r"^language_model\.", ""),
    (r"^model\.language_model\.", "model."),
)


@dataclass(frozen=True)
class Loading:
    """What a model loads from a checkpoint.

    - `names`: {name without a wrapper's prefix: name in the file}.
    - `parameters`: {parameter or buffer of the module: its name in `names`}, without fused experts, into which many tensors
      are loaded.
    - `buffers`: those of `names` that are buffers.
    - `unused`: names in the file that the model does not load.
    - `embedding`, `output`: the names of both matrices, None if the file lacks one; `embedding_parameter` and
      `output_parameter`: the module's parameters.
    - `tied`: whether config.json ties them.
    - `needed`: {parameter of the model with separate experts: (its name in `names` or None, its shape)}; a tied one once.
    """

    names: Mapping[str, str]
    parameters: Mapping[str, str]
    buffers: frozenset[str]
    unused: tuple[str, ...]
    embedding: str | None
    output: str | None
    embedding_parameter: str | None
    output_parameter: str | None
    tied: bool
    needed: Mapping[str, tuple[str | None, tuple[int, ...]]]


def strip_wrappers(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    for pattern, replacement in WRAPPERS:
        name = re.sub(pattern, replacement, name)
    return name


class _Names:
    """transformers' naming rules for one model: which parameter a stored tensor is loaded into."""

    def __init__(self, module: nn.Module) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(module)
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self.prefix, self.state = module.base_model_prefix, module.state_dict()

    def target(self, name: str) -> tuple[str | None, bool]:
        """Return the parameter or buffer that a stored tensor is loaded into (None: not loaded), and whether it is converted."""
        from transformers.core_model_loading import rename_source_key

        rules = ((self.renamings, self.converters), ([], []))
        for renamings, converters in rules:
            target, converted = rename_source_key(name, renamings, converters, self.prefix, self.state)
            if target in self.state:
                return target, converted is not None
            if name not in self.state:
                break
        return None, False


def _weight_of(module: nn.Module, part: nn.Module | None) -> str | None:
    """Return the name of the weight of a module's part."""
    return (
        next((f"{name}.weight" for name, candidate in module.named_modules() if candidate is part), None)
        if part
        else None
    )


def _targets(names: _Names, stored: Iterable[str]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield (name in the file, name without prefix, parameter, converted) for each tensor that is loaded.

    An exact name takes precedence over one with a wrapper's prefix; a second tensor for the same parameter is not loaded.
    """
    taken: set[str] = set()
    rest = list(stored)
    for strip in (lambda key: key, strip_wrappers):
        left = []
        for key in rest:
            name = strip(key)
            target, converted = names.target(name)
            place = name if converted else target
            if place is None or place in taken:
                left.append(key)
                continue
            taken.add(place)
            yield key, name, target, converted
        rest = left


def stored_name(names: Container[str], parameters: Mapping[str, str], prefix: str, parameter: str) -> str | None:
    """Return the checkpoint's name of a parameter of a model with separate experts; None if it is tied to another or absent.

    `names` and `parameters` are those of `Loading`; `prefix` is the name of the base model inside the model with a head, which
    checkpoints may omit.
    """
    if parameter in parameters:
        return parameters[parameter]
    for called in stored_names(parameter):
        for candidate in (called, called.removeprefix(f"{prefix}."), f"{prefix}.{called}"):
            if candidate in names:
                return candidate
    return None


def _needed(
    module: nn.Module, find: Callable[[str], str | None], ties: Mapping[str, str]
) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """Return {parameter: (stored name or None, shape)}; tied parameters once, stored under the name of any of them."""
    separate_experts_(module)
    needed = {}
    for name, parameter in module.named_parameters():
        if name not in ties:
            same = (name, *(target for target, source in ties.items() if source == name))
            source_name = next((stored for stored in map(find, same) if stored is not None), None)
            needed[name] = (source_name, tuple(parameter.shape))
    return needed


def read_loading(folder: Path, settings: Mapping[str, Any], stored: Iterable[str]) -> Loading:
    """Return what the model of a folder loads of the tensors `stored`, named as in its files. Raises `UserError`.

    Only config.json is read. The whole model is on the meta device and takes no memory.
    """
    stored = list(stored)
    module = build(folder, settings, torch.device("meta"))
    loaded = {key: place for key, *place in _targets(_Names(module), stored)}
    names = {loaded[key][0]: key for key in stored if key in loaded}
    parameters = {target: name for name, target, converted in loaded.values() if not converted}
    known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    table = _weight_of(module, module.get_input_embeddings())
    output = _weight_of(module, module.get_output_embeddings())
    ties = getattr(module, "all_tied_weights_keys", None) or {}
    find = partial(stored_name, names, parameters, module.base_model_prefix)
    return Loading(
        names=names,
        parameters=parameters,
        buffers=frozenset(name for target, name in parameters.items() if target not in known),
        unused=tuple(key for key in stored if key not in loaded and not BUFFERS.search(key)),
        embedding=parameters.get(table),
        output=parameters.get(output),
        embedding_parameter=table,
        output_parameter=output,
        tied=output in ties or output is None,
        needed=_needed(module, find, ties),
    )
