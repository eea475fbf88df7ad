"""Training of the bundled model: a SentencePiece tokenizer and a small Llama, on generated stories only."""

import io
import json
import logging
import math
import time
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from bitplan.demo.settings import TrainingSettings

log = logging.getLogger(__name__)


def train_tokenizer(text: str, pieces: int, folder: Path) -> LlamaTokenizer:
    """Train a byte-fallback SentencePiece BPE model on `text`, save it under `folder` and return it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()[:20_000]),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=False, add_eos_token=False)
    tokenizer.save_pretrained(folder)
    path.write_bytes(model.getvalue())
    _state_no_bos(folder / "tokenizer_config.json")
    return tokenizer


def _state_no_bos(config: Path) -> None:
    """Write "no BOS, no EOS" into a tokenizer's configuration: llama.cpp's converter assumes BOS if the keys are missing."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    portable = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    settings = {**portable, "add_bos_token": False, "add_eos_token": False}
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def model_config(pieces: int) -> LlamaConfig:
    """Return the architecture of the bundled model: 4 blocks of hidden size 256, grouped-query attention."""
    return LlamaConfig(
        vocab_size=pieces,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        rms_norm_eps=1e-5,
        # With larger initial weights, blocks contribute more to the residual stream, learn this text faster, and rounding has
        # a visible effect. With the usual 0.02 even 2-bit weights hardly change the model's outputs.
        initializer_range=0.1,
    )


def _learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the rate at `step`: linear warm-up, then a cosine down to 2 % of the peak."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))


def _batch(tokens: Tensor, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(tokens) - settings.length, (settings.batch,), generator=generator)
    return torch.stack([tokens[i : i + settings.length] for i in starts.tolist()])  # (batch, length)


def _optimizer(model: LlamaForCausalLM, rate: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def train_model(tokens: Tensor, settings: TrainingSettings) -> LlamaForCausalLM:
    """Train on `tokens` (1-D, int64) and return the model in bfloat16; logs loss and rate every 50 steps."""
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    model = LlamaForCausalLM(model_config(settings.pieces))
    optimizer = _optimizer(model, settings.learning_rate)
    started = time.monotonic()
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, settings)
        batch = _batch(tokens, settings, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == settings.steps - 1:
            rate = (step + 1) * batch.numel() / (time.monotonic() - started)
            left = (settings.steps - step - 1) * batch.numel() / rate
            log.info(
                "step %d/%d loss %.4f, %.0f tokens/s, %.0f s left", step + 1, settings.steps, loss.item(), rate, left
            )
    return model.to(torch.bfloat16)
