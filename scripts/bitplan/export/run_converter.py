"""Runs llama.cpp's converter, and supplies what it would miss: the pre-tokenizer's name, and keys of older configurations.

    python run_converter.py CONVERTER_FOLDER PRE_TOKENIZER KEYS_AS_JSON converter-arguments ...

The converter recognizes a byte-level BPE tokenizer by a hash of what it makes of a test string; a tokenizer of one's own has
another hash. Known ones keep the converter's own answer. A program of its own: the converter wants the interpreter's flags.
"""

import json
import runpy
import sys

if __name__ == "__main__":
    folder, name, keys = sys.argv[1:4]
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    from conversion.base import ModelBase, TextModel

    known, load = TextModel.get_vocab_base_pre, ModelBase.load_hparams

    def known_or_named(self: TextModel, tokenizer: object) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            print(f"unknown pre-tokenizer, taken as {name}", file=sys.stderr)
            return name

    def with_older_keys(*args: object, **kwargs: object) -> dict:
        return {**json.loads(keys), **load(*args, **kwargs)}

    TextModel.get_vocab_base_pre = known_or_named
    ModelBase.load_hparams = staticmethod(with_older_keys)
    sys.argv = [f"{folder}/convert_hf_to_gguf.py", *sys.argv[4:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
