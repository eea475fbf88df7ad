"""Runs llama.cpp's converter, and supplies what it would miss: facts of the tokenizer, keys of older configurations, the tensors.

    python run_converter.py CONVERTER_FOLDER converter-arguments ... < FACTS_AS_JSON

The facts hold `sources`, {tensor: [file, its name there]}: what the model loads. The converter would take every tensor of every
file called model*, those for multi-token prediction too.

The converter recognizes a byte-level BPE tokenizer by a hash of its output for a test string; an unlisted tokenizer has another
hash. Known ones keep the converter's own answer. It reads added tokens from files that transformers 5 no longer writes, and stops
at tokens for which the embedding has no row. It widens each matrix to float32 as a whole, an embedding of 152,064 x 3584
to 2.2 GB and its copies: a matrix that goes into the file as it is stored goes through some rows at a time, to the same bytes.
A program of its own: the converter wants the interpreter's flags.
"""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial

VALUES_AT_ONCE = 1 << 20
# Keys of config.json that announce blocks beyond those that the model runs.
MORE_BLOCKS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")

if __name__ == "__main__":
    folder, facts = sys.argv[1], json.load(sys.stdin)
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    import gguf
    import numpy as np
    import torch
    from conversion.base import LazyTorchTensor, ModelBase, SentencePieceTokenTypes, TextModel
    from gguf.utility import SafetensorsLocal

    known, load = TextModel.get_vocab_base_pre, ModelBase.load_hparams
    byte_level, pieces, prepare = (
        TextModel.get_vocab_base,
        TextModel._create_vocab_sentencepiece,
        TextModel.prepare_metadata,
    )
    get_tensors, as_numpy = ModelBase.get_tensors, LazyTorchTensor.numpy

    def known_or_named(self: TextModel, tokenizer: object) -> str:
        """Return the pre-tokenizer that the converter knows; one that it does not know has the name in the facts, or the default."""
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            if not facts["pre"]:
                print(f"unknown pre-tokenizer, taken as {facts['default_pre']}", file=sys.stderr)
            return facts["pre"] or facts["default_pre"]

    def with_older_keys(*args: object, **kwargs: object) -> dict:
        held = {**facts["hparams"], **load(*args, **kwargs)}
        for part in (held, held.get("text_config") or {}):
            part.update((key, 0) for key in MORE_BLOCKS if part.get(key))
        return held

    def from_sources(self: ModelBase, remote_hf_model_id: str | None = None) -> dict[str, Callable]:
        """Return the tensors of `sources` as the converter indexes those of a folder: {name: what loads it}."""
        sources = facts["sources"]
        files = {file: SafetensorsLocal(file) for file in dict.fromkeys(file for file, _ in sources.values())}
        loaders = {
            called: partial(LazyTorchTensor.from_local_tensor, files[file].tensors[key])
            for called, (file, key) in sources.items()
        }
        return dict(item for item in map(self.filter_tensors, loaders.items()) if item)

    def within_embedding(self: TextModel) -> tuple[list[str], list[int], str]:
        """Return the tokens for which the embedding has rows, their types and the pre-tokenizer."""
        rows = self.hparams.get("vocab_size", facts["tokens"])
        self.hparams["vocab_size"] = max(rows, facts["tokens"])
        tokens, types, name = byte_level(self)
        self.hparams["vocab_size"] = rows
        return tokens[:rows], types[:rows], name

    def with_added(self: TextModel) -> tuple[list[bytes], list[float], list[int]]:
        """Return the pieces of a SentencePiece vocabulary, their scores and types, the added tokens among them."""
        tokens, scores, types = pieces(self)
        for number, (text, special) in facts["added"].items():
            place, free = int(number), (SentencePieceTokenTypes.UNUSED, SentencePieceTokenTypes.NORMAL)
            if place >= len(tokens) or types[place] not in free:
                continue
            control = special or self.does_token_look_special(text)
            types[place] = SentencePieceTokenTypes.CONTROL if control else SentencePieceTokenTypes.USER_DEFINED
            tokens[place] = (text if control else text.replace("\u2581", " ")).encode()
            scores[place] = -1000.0
        return tokens, scores, types

    def with_keys(self: TextModel, vocab_only: bool) -> None:
        """Write the metadata, and the keys of the facts, which the converter leaves out."""
        prepare(self, vocab_only)
        kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32}
        for held in self.gguf_writer.kv_data:
            kind = held["tokenizer.ggml.model"].value if "tokenizer.ggml.model" in held else "none"
            known = {key: value for key, value in facts["keys"].items() if kind == "llama" or "space" not in key}
            held.update({key: gguf.GGUFValue(x, kinds[type(x)]) for key, x in known.items() if kind != "none"})

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

    TextModel.get_vocab_base_pre, TextModel.get_vocab_base = known_or_named, within_embedding
    TextModel._create_vocab_sentencepiece, TextModel.prepare_metadata = with_added, with_keys
    ModelBase.load_hparams = staticmethod(with_older_keys)
    ModelBase.index_tensors = from_sources
    ModelBase.get_tensors, LazyTorchTensor.numpy = with_source, in_pieces
    sys.argv = [f"{folder}/convert_hf_to_gguf.py", *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
