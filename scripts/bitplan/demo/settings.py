"""How the bundled model is trained."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """How the bundled model is trained; the seed fixes text, initial weights and batches."""

    seed: int = 7
    pieces: int = 1536
    steps: int = 1500
    batch: int = 8
    length: int = 512
    learning_rate: float = 3e-3
    warmup: int = 100
    text_characters: int = 28_000_000
