"""The checkpoint format of vLLM, SGLang and transformers, packed by the compressed-tensors library."""
