"""Reads a text file. Needs no torch."""

import codecs
from pathlib import Path

from bitplan.core.errors import user_error

# The longer marks come first: the mark of UTF-32-LE begins with that of UTF-16-LE.
WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def read_text(path: Path) -> str:
    """Return a UTF-8 text without a byte order mark. Raises `UserError` if it is missing, empty or not UTF-8."""
    try:
        raw = Path(path).read_bytes()
        wide = next((name for mark, name in WIDE_MARKS.items() if raw.startswith(mark)), None)
        if wide:
            raise user_error("TEXT-NOT-UTF8", path, f"is {wide} text", f"Save it as UTF-8: iconv -f {wide} -t UTF-8")
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise user_error("FILE-UNREADABLE", path, f"cannot be read: {error.strerror}", "Give a UTF-8 text") from None
    except UnicodeDecodeError as error:
        raise user_error("TEXT-NOT-UTF8", path, f"is not UTF-8 text (byte {error.start})", "Save it as UTF-8") from None
    if not text.strip():
        raise user_error("TEXT-EMPTY", path, "is empty", "Give a text of a few thousand words")
    return text
