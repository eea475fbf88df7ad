"""SmoothQuant: moves outliers from activations to weights without changing any output of the full-precision model.

Y = X W^T = (X / s)(W * s)^T for any s > 0 per input column (Xiao et al. 2022, section 4). If the input of some layers comes directly
from a norm, the norm's weight (and bias) is divided by s, and the weights of all layers that read it, quantized or not, are
multiplied by s. Otherwise the layer's input is divided.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error
from bitplan.core.files import write_aside
from bitplan.models.walk import Block


@dataclass(frozen=True)
class SmoothGroup:
    """Layers that share an input, by checkpoint name, and the factor s (in,) float32 of each of its columns.

    `norm` is the norm into which 1 / s is folded; "" if the input itself is divided. `offset` is the constant that the norm adds
    to its weight (Gemma: 1); `alpha` is SmoothQuant's exponent.
    """

    layers: tuple[str, ...]
    scale: Tensor
    norm: str = ""
    offset: float = 0.0
    alpha: float = 0.5


@dataclass(frozen=True)
class Smoothing:
    """The groups of a model."""

    groups: tuple[SmoothGroup, ...]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The distinct alphas of the groups in rising order."""
        return tuple(sorted({group.alpha for group in self.groups}))

    @cached_property
    def by_layer(self) -> Mapping[str, SmoothGroup]:
        """The group of each layer that has one."""
        return {layer: group for group in self.groups for layer in group.layers}

    @cached_property
    def by_norm(self) -> Mapping[str, SmoothGroup]:
        """The group that is folded into each norm."""
        return {group.norm: group for group in self.groups if group.norm}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names and factors, which plans record."""
        digest = hashlib.sha256()
        for group in self.groups:
            digest.update(
                repr((group.layers, group.norm, group.offset, group.alpha)).encode() + group.scale.numpy().tobytes()
            )
        return digest.hexdigest()

    @property
    def short_digest(self) -> str:
        """The first digits of the digest, for tables."""
        return self.digest[:12]

    @cached_property
    def folded(self) -> "Smoothing":
        """The groups that are folded into norms: only these can be stored in a checkpoint or GGUF file."""
        return Smoothing(tuple(group for group in self.groups if group.norm))

    def factor(self, layer: str) -> Tensor | None:
        """Return s (in,) of a layer; None when it is not smoothed."""
        group = self.by_layer.get(layer)
        return None if group is None else group.scale

    def input_divisor(self, layer: str) -> Tensor | None:
        """Return s (in,) if a layer's input has to be divided by it; None if s is folded into a norm or there is none."""
        group = self.by_layer.get(layer)
        return None if group is None or group.norm else group.scale


def fold_norm(weight: Tensor, group: SmoothGroup) -> Tensor:
    """Return the norm's weight (in,) with 1 / s folded in, float32."""
    return (weight.to(torch.float32) + group.offset) / group.scale.to(weight.device) - group.offset


def fold_norms_(block: Block, smoothing: Smoothing) -> None:
    """Divide the block's norms by the factors of their groups."""
    for name, module in block.norms.items():
        group = smoothing.by_norm.get(name)
        if group is None:
            continue
        weight, bias = module.weight, getattr(module, "bias", None)
        module.weight = nn.Parameter(fold_norm(weight, group).to(weight.dtype), requires_grad=False)
        if bias is not None:
            divided = bias.to(torch.float32) / group.scale.to(bias.device)
            module.bias = nn.Parameter(divided.to(bias.dtype), requires_grad=False)


def smoothing_path(plan: Path) -> Path:
    """Return the path of the factors of a plan or configuration: next to it, under its name."""
    return Path(plan).with_name(f"{Path(plan).stem}.smoothing.safetensors")


def write_smoothing(path: Path, smoothing: Smoothing) -> None:
    """Write the groups and their factors as safetensors."""
    from safetensors.torch import save_file

    keys = [f"{number:06d}" for number in range(len(smoothing.groups))]
    facts = {
        key: {"layers": group.layers, "norm": group.norm, "offset": group.offset, "alpha": group.alpha}
        for key, group in zip(keys, smoothing.groups, strict=True)
    }
    # A single key: safetensors writes several metadata keys in an order that changes between runs.
    metadata = {"facts": json.dumps({"groups": facts}, sort_keys=True)}
    with write_aside(path) as aside:
        save_file(
            {key: group.scale.contiguous() for key, group in zip(keys, smoothing.groups, strict=True)}, aside, metadata
        )


def read_smoothing(path: Path, digest: str | None = None) -> Smoothing:
    """Return the factors in a file. Raises `UserError` if it is not such a file or its digest is not the plan's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            facts = json.loads(handle.metadata()["facts"])
            groups = tuple(
                SmoothGroup(tuple(fact["layers"]), handle.get_tensor(key), fact["norm"], fact["offset"], fact["alpha"])
                for key, fact in sorted(facts["groups"].items())
            )
            smoothing = Smoothing(groups)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        hint = "It belongs beside its plan: search again, or copy it too"
        raise user_error(path, f"is no file of smoothing factors: {error}", hint) from None
    if digest is not None and smoothing.digest != digest:
        raise user_error(
            path, "belongs to another plan", "Search again, or copy the file that was written with the plan"
        )
    return smoothing
