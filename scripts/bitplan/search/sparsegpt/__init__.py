"""Pruning and quantizing layers column by column (SparseGPT, GPTQ), with a bit width for every input channel."""
