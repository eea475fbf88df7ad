"""What `config.json` says of packed layers."""

from collections.abc import Iterable, Mapping
from typing import Any

import compressed_tensors
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

from bitplan.runtimes.compressed_tensors.packing import library_scheme
from bitplan.runtimes.compressed_tensors.schemes import Scheme

MIXED, OUTPUT = "mixed-precision", "lm_head"


def quantization_config(schemes: Mapping[str, Scheme], whole: Iterable[str]) -> dict[str, Any]:
    """Return the `quantization_config` of layers {name: scheme}: a group for each scheme; `whole` are matrices left as they are.

    The output matrix is named whether it is stored or not: of a tied model it is the embedding.
    """
    members: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        members.setdefault(scheme, []).append(name)
    groups = {
        f"group_{number}": library_scheme(scheme, tuple(names))
        for number, (scheme, names) in enumerate(members.items())
    }
    packings = sorted({scheme.packing for scheme in members})
    config = QuantizationConfig(
        config_groups=groups,
        format=packings[0] if len(packings) == 1 else MIXED,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted({OUTPUT, *whole}),
    )
    return {"version": compressed_tensors.__version__, **config.model_dump(mode="json")}
