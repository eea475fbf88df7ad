"""How many tokens a text has, or can have at most, without torch: whether it is long enough is known before anything is run."""

import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path

from bitplan.reference.text_file import read_text

log = logging.getLogger(__name__)
# Characters of a text's beginning that are counted first, for each token that is needed; tokens that a cut may change.
CHARACTERS, AT_A_CUT = 8, 64
# Where the count is so near to what is needed, transformers' own tokenizer decides: it may set up the file's otherwise.
NEAR = 0.02


def most_tokens(path: Path) -> int:
    """Return a bound on the tokens of a UTF-8 text under any tokenizer: the number of its bytes, and one that some put in front.

    No token stands for less than a byte. Tokenizers that normalize first (NFD, NFC, NFKD, NFKC) may lengthen a text: the bound counts the
    bytes of the longest form, for which a text is read. Raises `UserError` for a file that is not UTF-8 text.
    """
    content = read_text(path)
    longest = max(len(form.encode()) for form in (content, unicodedata.normalize("NFKD", content)))
    return longest + 1


def _fast_counter(folder: Path) -> Callable[[str], int] | None:
    """Return the function that counts with a model's tokenizer.json; None where there is none that can be read."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        # The library raises a plain Exception; transformers' tokenizer says what is wrong.
        log.debug("%s: no tokenizer.json: %s", folder, error)
        return None
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _own_counter(folder: Path) -> Callable[[str], int]:
    from bitplan.reference.text import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _counted(count: Callable[[str], int], text: str, needed: int) -> int:
    begin = text[: CHARACTERS * needed]
    found = count(begin)
    return found if len(begin) == len(text) or found >= needed + AT_A_CUT else count(text)


def count_tokens(folder: Path, path: Path, needed: int) -> int:
    """Return how many tokens a text has under the tokenizer of the model in a folder; `needed` or more where its beginning has so many.

    Raises `UserError` for a file that is not UTF-8 text, and for a model without a tokenizer.
    """
    text, fast = read_text(path), _fast_counter(folder)
    found = _counted(fast, text, needed) if fast else None
    if found is not None and abs(found - needed) > NEAR * needed:
        return found
    return _counted(_own_counter(folder), text, needed)
