"""Whether windows begin with BOS, the token that begins a text. Needs no torch."""

from collections.abc import Mapping
from typing import Any

# Families whose models were only trained on windows with BOS: without it their perplexity is meaningless.
NEEDS_BOS = ("gemma", "recurrent_gemma", "t5gemma")


def begins_with_bos(config: Mapping[str, Any], policy: str) -> bool:
    """Return whether windows begin with BOS: "always", "never", or "auto": in families that need it. config: of config.json."""
    return policy == "always" or (policy == "auto" and str(config.get("model_type", "")).startswith(NEEDS_BOS))
