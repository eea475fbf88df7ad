"""Code versions: which files stand behind a command, and which edits count."""

import pytest

from bitplan.workflow import code_versions as versions

FILES = {
    "a.py": "from pkg.m import f\n",
    "pkg/__init__.py": "",
    "pkg/m.py": "from . import n\nfrom .sub import k\ndef f():\n    from pkg import late\n    return n.g()\n",
    "pkg/n.py": "def g(): return 1\n",
    "pkg/late.py": "x = 1\n",
    "pkg/sub/__init__.py": "from ..n import g\n",
    "pkg/sub/k.py": "import numpy\n",
    "pkg/other.py": "x = 1\n",
}


@pytest.fixture
def hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "SCRIPTS", tmp_path)

    def make(**changed: str) -> dict[str, str]:
        for name, text in {**FILES, **changed}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for cached in (versions._read, versions._located):
            cached.cache_clear()
        return versions.code_versions("a.py")

    return make


def test_every_local_file_behind_a_command_counts_even_when_imported_late(hashes):
    assert list(hashes()) == [
        "a.py",
        "pkg/__init__.py",
        "pkg/late.py",
        "pkg/m.py",
        "pkg/n.py",
        "pkg/sub/__init__.py",
        "pkg/sub/k.py",
    ]


def test_comments_docstrings_and_layout_do_not_count(hashes):
    before = hashes()
    assert hashes(**{"pkg/n.py": '"""Doc."""\n# c\n\ndef g():\n    "doc"\n    return  (1)\n'}) == before


def test_an_edit_of_meaning_counts_in_its_file_only(hashes):
    before, after = hashes(), hashes(**{"pkg/n.py": "def g(): return 2\n"})
    assert {name for name in before if before[name] != after[name]} == {"pkg/n.py"}


def test_a_file_that_is_not_imported_does_not_count(hashes):
    before = hashes()
    assert hashes(**{"pkg/other.py": "x = 2\n"}) == before
