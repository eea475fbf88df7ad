"""Which token of a vocabulary a server means by a text: servers name tokens in several ways, and most of them give no ids."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE_OF_PIECES = "▁"


def _unique(texts: Sequence[str]) -> dict[str, int]:
    """Return {text: token} of the texts that exactly one token has."""
    counts = Counter(texts)
    return {text: token for token, text in enumerate(texts) if counts[text] == 1}


@dataclass(frozen=True)
class TokenNames:
    """The ways in which servers name tokens, each {text: id} of the texts that one token alone has.

    "decoded" is the text of the token by itself (SGLang), "piece" with its leading space (llama.cpp), "stored" as the vocabulary
    writes it (older vLLM), "id" as token_id:7 (vLLM's return_tokens_as_token_ids).
    """

    ways: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "TokenNames":
        """Return the names of all tokens of a tokenizer."""
        ids = list(range(len(tokenizer)))
        stored = [name if name is not None else "" for name in tokenizer.convert_ids_to_tokens(ids)]
        decoded = tokenizer.batch_decode([[token] for token in ids])
        ways = {
            "decoded": decoded,
            "piece": [name.replace(SPACE_OF_PIECES, " ") for name in stored],
            "stored": stored,
            "id": [f"token_id:{token}" for token in ids],
        }
        return cls({way: _unique(texts) for way, texts in ways.items()})

    def by_echo(self, texts: Sequence[str], tokens: Sequence[int]) -> tuple[Mapping[str, int], float]:
        """Return the way that names most of `tokens` by the `texts` at their places, and the share of them that it does."""
        shares = {
            way: sum(names.get(text) == token for text, token in zip(texts, tokens, strict=False))
            for way, names in self.ways.items()
        }
        best = max(shares, key=shares.__getitem__)
        return self.ways[best], shares[best] / max(1, len(tokens))

    def by_texts(self, texts: Iterable[str]) -> Mapping[str, int]:
        """Return the way that knows most of some texts."""
        held = list(texts)
        return max(self.ways.values(), key=lambda names: sum(text in names for text in held))
