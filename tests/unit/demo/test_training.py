"""Training of the bundled model, in miniature: it learns, and the same seed gives the same model."""

import torch

from bitplan.demo.settings import TrainingSettings
from bitplan.demo.stories import text_of
from bitplan.demo.training import train_model, train_tokenizer


def test_a_few_steps_learn_and_repeat_themselves(tmp_path, caplog):
    settings = TrainingSettings(pieces=600, steps=6, batch=2, length=64, warmup=2)
    text = text_of(3, 60_000)
    tokenizer = train_tokenizer(text, settings.pieces, tmp_path)
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    with caplog.at_level("INFO"):
        first, second = (train_model(tokens, settings) for _ in range(2))
    losses = [record.args[2] for record in caplog.records]
    assert losses[1] < losses[0] - 0.2
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert next(first.parameters()).dtype is torch.bfloat16


def test_the_tokenizer_gives_back_the_text_and_adds_nothing(tmp_path):
    text = text_of(3, 60_000)
    tokenizer = train_tokenizer(text, 600, tmp_path)
    ids = tokenizer(text[:500]).input_ids
    assert tokenizer.decode(ids).strip() == text[:500].strip() and tokenizer.bos_token_id not in ids
