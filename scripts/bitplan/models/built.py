"""The model that transformers builds from a checkpoint's config.json, without weights."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitplan.core.errors import user_error
from bitplan.core.garbage import loading_packages

BAD_CONFIG = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError)
TIED = "tie_word_embeddings"


def text_config(folder: Path):
    """Return transformers' configuration of the language model; for a multimodal model, the part of the language model.

    Embedding and output are tied if either part says so. Raises what transformers raises.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = config.get_text_config(decoder=True)
    if text is not config:
        setattr(text, TIED, getattr(text, TIED, False) or getattr(config, TIED, False))
    return text


def build(
    folder: Path, settings: Mapping[str, Any], within: AbstractContextManager, dtype: torch.dtype | None = None
) -> nn.Module:
    """Return the causal language model of a folder, built inside the context `within`; `settings` is its config.json.

    The context decides where parameters and buffers are placed; no weights are loaded. Code from the checkpoint is never
    run. Raises `UserError` for a family that transformers does not know.
    """
    with loading_packages():
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoModelForCausalLM

    try:
        # The modules of a family are loaded when its configuration is read, and when the model is built.
        with loading_packages():
            config = text_config(folder)
        with loading_packages(), within:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
    except (*BAD_CONFIG, StrictDataclassError) as error:
        kind = settings.get("model_type", "no model_type")
        first = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise user_error(
            "MODEL-NOT-BUILT",
            folder / "config.json",
            f"does not describe a causal language model that transformers builds ({kind}): {first}",
            "docs/families.md lists the families",
        ) from None
