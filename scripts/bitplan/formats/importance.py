"""The check that formats which need an importance matrix get one."""

from collections.abc import Iterable

from bitplan.core.errors import user_error
from bitplan.formats.facts import NEED_IMPORTANCE

HINT = "Give --imatrix (scripts/layer_stats.py writes it; in the workflow: imatrix: true), or choose other formats"


def needing_importance(candidates: Iterable[str]) -> list[str]:
    """Return the weight formats among candidates (q4_k, iq2_s, mxfp4/mxfp8) that need an importance matrix, in order, each once."""
    weights = (name.partition("/")[0] for name in candidates)
    return [name for name in dict.fromkeys(weights) if name in NEED_IMPORTANCE]


def check_importance(candidates: Iterable[str], given: bool) -> None:
    """Raise `UserError` that names the formats which need an importance matrix, unless one is given."""
    needing = needing_importance(candidates)
    if needing and not given:
        what = "quantized with an importance matrix only, and none is given"
        raise user_error("FORMAT-NEEDS-IMPORTANCE", f"format {', '.join(needing)}", what, HINT)
