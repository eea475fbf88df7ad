"""Pruning and quantizing layers column by column (SparseGPT, GPTQ), with a width of its own for every input channel."""
