"""Perplexity and KL of a checkpoint of packed tensors, in transformers."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.evaluate.scores import LogitsOf, TokenScores, score
from bitplan.reference.reference import Reference


def load_exact(folder: Path) -> nn.Module:
    """Return the model with its weights decompressed by transformers, in float32.

    Layers of MX blocks decompress to bfloat16, which holds their values exactly, so all are widened after. Raises `UserError` for zero
    points, which transformers does not load.
    """
    from transformers import AutoModelForCausalLM

    quantized = read_json(folder / "config.json").get("quantization_config", {})
    groups = quantized.get("config_groups", {}).values()
    if not all(group["weights"]["symmetric"] for group in groups):
        raise user_error(
            "RUNTIME-UNLOADABLE",
            folder,
            "has integers with zero points, which vLLM loads and transformers 5.23 does not",
            "Use symmetric formats, as int4",
        )
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    if quantized:
        net.hf_quantizer.compressor.decompress_model(net)
    return net.to(torch.float32)


def _logits(net: nn.Module, tokens: Tensor, folder: Path) -> LogitsOf:
    @lru_cache(maxsize=1)
    def logits(window: int) -> Tensor:
        with torch.inference_mode():
            made = net(tokens[window : window + 1].to(torch.long)).logits[0].float()
        if not made.isfinite().all():
            raise user_error(
                "RUNTIME-NOT-FINITE",
                folder,
                f"gives NaN or infinite logits in window {window}",
                "Export the plan again",
            )
        return made

    return lambda window, rows: logits(window)[rows]


def score_folder(folder: Path, reference: Reference, threads: int) -> TokenScores:
    """Return the scores of a checkpoint of packed tensors on the reference's tokens. Raises `UserError` for one of another model."""
    torch.set_num_threads(threads)
    net, expected = load_exact(folder), reference.head.matrix.shape[0]
    if net.config.get_text_config().vocab_size != expected:
        what = f"has {net.config.get_text_config().vocab_size} tokens, the model has {expected}"
        raise user_error(
            "RUNTIME-OTHER-MODEL", folder, what, "It was made from another model: give the folder of this one"
        )
    return score(reference, _logits(net, reference.tokens, folder))
