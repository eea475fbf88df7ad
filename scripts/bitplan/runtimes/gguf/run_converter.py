"""Runs llama.cpp's converter, and supplies what it would miss: the pre-tokenizer's name, and keys of older configurations.

    python run_converter.py CONVERTER_FOLDER PRE_TOKENIZER KEYS_AS_JSON converter-arguments ...

The converter recognizes a byte-level BPE tokenizer by a hash of what it makes of a test string; a tokenizer of one's own has
another hash. Known ones keep the converter's own answer. It widens each matrix to float32 as a whole, an embedding of 152,064 x 3584
to 2.2 GB and its copies: a matrix that goes into the file as it is stored goes through some rows at a time, to the same bytes.
A program of its own: the converter wants the interpreter's flags.
"""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial

VALUES_AT_ONCE = 1 << 20

if __name__ == "__main__":
    folder, name, keys = sys.argv[1:4]
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    import gguf
    import numpy as np
    import torch
    from conversion.base import LazyTorchTensor, ModelBase, TextModel

    known, load = TextModel.get_vocab_base_pre, ModelBase.load_hparams
    get_tensors, as_numpy = ModelBase.get_tensors, LazyTorchTensor.numpy

    def known_or_named(self: TextModel, tokenizer: object) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            print(f"unknown pre-tokenizer, taken as {name}", file=sys.stderr)
            return name

    def with_older_keys(*args: object, **kwargs: object) -> dict:
        return {**json.loads(keys), **load(*args, **kwargs)}

    def with_source(self: ModelBase) -> Iterator[tuple[str, LazyTorchTensor]]:
        """Yield the tensors, widened as the converter does first, each matrix with what loads it anew."""
        for called, tensor in get_tensors(self):
            exact = tensor.dtype in (torch.float16, torch.float32)
            widened = tensor if exact else tensor.to(torch.float32)
            if len(tensor.shape) == 2 and called in self.model_tensors:
                widened.source = self.model_tensors[called]
            yield called, widened

    def rows_of(source: Callable[[], LazyTorchTensor], start: int, stop: int, dtype: torch.dtype) -> np.ndarray:
        # The loaded tensor is a view of the mapped file, of which only these rows are read.
        return LazyTorchTensor.to_eager(source())[start:stop].to(dtype).contiguous().numpy()

    def in_pieces(self: LazyTorchTensor) -> gguf.LazyNumpyTensor | gguf.LazyChunkedTensor:
        """Return a matrix as it is stored as one that is written piece by piece; what was computed on the way has no source."""
        source = self.__dict__.get("source")
        if source is None:
            return as_numpy(self)
        (rows, columns), step = self.shape, max(1, VALUES_AT_ONCE // self.shape[1])
        ends = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        pieces = [partial(rows_of, source, *end, self.dtype) for end in ends]
        return gguf.LazyChunkedTensor(pieces, (rows, columns), self._dtype_map[self.dtype])

    TextModel.get_vocab_base_pre = known_or_named
    ModelBase.load_hparams = staticmethod(with_older_keys)
    ModelBase.get_tensors, LazyTorchTensor.numpy = with_source, in_pieces
    sys.argv = [f"{folder}/convert_hf_to_gguf.py", *sys.argv[4:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
