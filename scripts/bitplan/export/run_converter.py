"""Runs llama.cpp's converter, and names the pre-tokenizer where the converter does not know the tokenizer.

    python known_tokenizer.py CONVERTER_FOLDER PRE_TOKENIZER converter-arguments ...

The converter recognizes a byte-level BPE tokenizer by a hash of what it makes of a test string; a tokenizer of one's own has
another hash. Known ones keep the converter's own answer. A program of its own: the converter wants the interpreter's flags.
"""

import runpy
import sys

if __name__ == "__main__":
    folder, name = sys.argv[1:3]
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def known_or_named(self: TextModel, tokenizer: object) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            print(f"unknown pre-tokenizer, taken as {name}", file=sys.stderr)
            return name

    TextModel.get_vocab_base_pre = known_or_named
    sys.argv = [f"{folder}/convert_hf_to_gguf.py", *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
