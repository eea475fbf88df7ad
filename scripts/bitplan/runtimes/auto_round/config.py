"""What `config.json` says of packed layers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bitplan.models.families import place_of
from bitplan.runtimes.auto_round.schemes import Scheme
from bitplan.runtimes.runtime import ExportJob

WHOLE = {"bits": 16, "data_type": "float"}


def auto_round_config(job: ExportJob, schemes: Mapping[str, Scheme], matrices: Sequence[str]) -> dict[str, Any]:
    """Return the `quantization_config`: the most frequent scheme, and what differs for every other layer of the blocks."""
    default = Counter(schemes.values()).most_common(1)[0][0]
    extra: dict[str, Mapping[str, Any]] = {}
    for name in matrices:
        if name not in schemes:
            extra[name] = WHOLE
        elif schemes[name] != default:
            extra[name] = dict(schemes[name].entry.items() - default.entry.items())
    config = {
        "quant_method": "auto-round",
        "packing_format": "auto_round",
        "data_type": "int",
        "block_name_to_quantize": _blocks(schemes),
        **default.entry,
        "extra_config": extra,
    }
    return {"quantization_config": config}


def _blocks(schemes: Mapping[str, Scheme]) -> str:
    """Return the name of the list of blocks, as "model.layers"."""
    return place_of(next(iter(schemes))).prefix
