"""bitplan: which number format each weight matrix of a language model should get."""

__version__ = "0.1.0"
