"""Settings that have another name now."""

from typing import Any

# Keys of models that have another name now, by their old name and value: what to write instead.
RENAMED = {"gguf": {True: "runtimes: [gguf]", False: "runtimes: []"}}


def instead_of(location: tuple, value: Any) -> str:
    """Return what stands in the place of a key that was renamed; "" for any other key."""
    instead = RENAMED.get(str(location[-1]), {}) if location[0] == "models" and len(location) == 3 else {}
    return instead.get(str(value).lower() == "true", "")
