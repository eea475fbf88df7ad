"""Small tokenizers of each kind that llama.cpp reads, trained on the spot, and prompts that show where two tokenizers differ."""

import io
from pathlib import Path

from tests.conftest import ROOT

TEXT = ROOT / "demo" / "calibration.txt"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIAL = ("<s>", "</s>")
SIZE = 640
# Long numbers, blanks and capitals, so that there are tokens of several digits, whose use depends on where text is split.
LINES = [TEXT.read_text(encoding="utf-8")[:50_000], *["12345678 1234567 314159 2026 WE'VE I'LL   \n\n\n  x" * 9] * 99]

PROMPTS = (
    "Once upon a time there was a boy named Karl.",
    " a leading space",
    "   three leading spaces",
    "\n",
    "one line\nanother\n\n\nand a third",
    "\r\nwindows lines\r\n",
    "tabs\tand\t\tmore",
    "trailing spaces   ",
    "1234567 3.14159 007 2026-11-26",
    "It's what I'd say, WE'VE said and they'll say",
    "naïve café façade Ångström šťastný",
    "Привет, как дела?",
    "我想在apple工作1314151天～",
    "日本語とカタカナ 한국어",
    "🚀 rocket 👨‍👩‍👧 family",
    "x = [i**2 for i in range(10)]  # squares",
    "<s>text</s> with <s> special tokens",
    "snake_case CamelCase kebab-case",
    "!!!???...---===",
    "mixed 12ab34 ½ ² Ⅷ ٣",
    "a\u00a0no-break\u2009thin space",
    "",
)


def _trained(split: str | None, ignore_merges: bool, bos: bool, eos: bool):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([*parts, level]), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL], initial_alphabet=alphabet)
    made.train_from_iterator(LINES, trainer)
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        ids = [(token, made.token_to_id(token)) for token in SPECIAL]
        made.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=ids)
    return made


def byte_level(folder: Path, split: str | None, bos: bool, eos: bool = False, ignore_merges: bool = False) -> None:
    """Write a byte-level BPE tokenizer that splits text by a pattern (None: GPT-2's) and begins and ends a text as asked for."""
    from transformers import PreTrainedTokenizerFast

    made = _trained(split, ignore_merges, bos, eos)
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def sentencepiece(folder: Path, bos: bool, eos: bool = False, single_bytes: bool = True, **more: object) -> None:
    """Write a SentencePiece BPE tokenizer, with bytes as Llama 2's, or without."""
    from sentencepiece import SentencePieceTrainer
    from transformers import LlamaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES[0].split("\n")),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=single_bytes,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    made = LlamaTokenizer.from_pretrained(folder, add_bos_token=bos, add_eos_token=eos, **more)
    made.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model.getvalue())


KINDS = {
    "sentencepiece": lambda folder, bos, eos=False: sentencepiece(folder, bos, eos),
    "gpt2": lambda folder, bos, eos=False: byte_level(folder, None, bos, eos),
    "llama3": lambda folder, bos, eos=False: byte_level(folder, LLAMA3, bos, eos, ignore_merges=True),
    "qwen2": lambda folder, bos, eos=False: byte_level(folder, QWEN2, bos, eos),
}


def model_with(folder: Path, write_tokenizer, vocabulary: int = SIZE, **config) -> Path:
    """Save a tiny random Llama with a tokenizer; return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    made = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=128, **{**sizes, **special, **config})
    LlamaForCausalLM(made).save_pretrained(folder)
    return folder
