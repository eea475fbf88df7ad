"""Perplexity and KL of a checkpoint of packed tensors, in transformers."""

from pathlib import Path

import torch
from torch import nn

from bitplan.core.errors import user_error
from bitplan.core.files import read_json
from bitplan.evaluate.scores import TokenScores
from bitplan.reference.reference import Reference
from bitplan.runtimes.packed.scores import logits_in, score_windows


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


def score_folder(folder: Path, reference: Reference, threads: int) -> TokenScores:
    """Return the scores of a checkpoint of packed tensors on the reference's tokens. Raises `UserError` for one of another model."""
    torch.set_num_threads(threads)
    return score_windows(folder, reference, logits_in(load_exact(folder)))
