"""Tokenizes texts with llama.cpp by the vocabulary of a GGUF file.

    python probe_tokens.py FILE < TEXTS_AS_JSON

Writes a line of MARK and a JSON list of tokens for each text. A program of its own: where a vocabulary lacks a byte of a text, llama.cpp ends the process.
"""

import json
import sys
from pathlib import Path

# What else is printed, by libraries, has no mark.
MARK = "tokens "

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from bitplan.runtimes.gguf.llama_runtime import vocabulary

    with vocabulary(Path(sys.argv[1])) as tokenize:
        for text in json.load(sys.stdin):
            print(f"{MARK}{json.dumps(tokenize(text))}", flush=True)
