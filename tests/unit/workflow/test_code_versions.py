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
def scripts(tmp_path, monkeypatch):
    """A function that writes the files, with some replaced, and returns the version of a.py."""
    monkeypatch.setattr(versions, "SCRIPTS", (tmp_path,))

    def write(**changed: str | None) -> str:
        for name, text in {**FILES, **changed}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        for cached in filter(lambda value: hasattr(value, "cache_clear"), vars(versions).values()):
            cached.cache_clear()
        return versions.code_version("a.py")

    return write


def test_every_local_file_behind_a_command_counts_even_when_imported_late(scripts, tmp_path):
    scripts()
    assert [path.relative_to(tmp_path).as_posix() for path in versions.files_behind("a.py")] == [
        "a.py",
        "pkg/__init__.py",
        "pkg/late.py",
        "pkg/m.py",
        "pkg/n.py",
        "pkg/sub/__init__.py",
        "pkg/sub/k.py",
    ]


def test_comments_docstrings_and_layout_do_not_count(scripts):
    before = scripts()
    assert scripts(**{"pkg/n.py": '"""Doc."""\n# c\n\ndef g():\n    "doc"\n    return  (1)\n'}) == before


def test_an_edit_of_a_template_beside_a_module_counts(scripts, tmp_path):
    without = scripts()
    versions_seen = {without, *(scripts(**{"pkg/sub/page.html.j2": text}) for text in ("<p>a</p>", "<p>b</p>"))}
    assert len(versions_seen) == 3
    (tmp_path / "elsewhere").mkdir()
    assert scripts(**{"pkg/sub/page.html.j2": None, "elsewhere/page.html.j2": "x"}) == without


def test_an_edit_of_meaning_counts(scripts):
    before = scripts()
    assert scripts(**{"pkg/n.py": "def g(): return 2\n"}) != before


def test_an_edit_inside_a_function_that_only_imports_counts(scripts):
    assert scripts(**{"pkg/late.py": "x = 2\n"}) != scripts()


def test_a_file_that_is_not_imported_does_not_count(scripts):
    before = scripts()
    assert scripts(**{"pkg/other.py": "x = 2\n"}) == before


def test_a_moved_module_does_not_count(scripts):
    before = scripts()
    moved = {
        "pkg/n.py": None,
        "pkg/sub/renamed.py": FILES["pkg/n.py"],
        "pkg/sub/__init__.py": "from .renamed import g\n",
        "pkg/m.py": FILES["pkg/m.py"].replace("from . import n", "from .sub import renamed as n"),
    }
    assert scripts(**moved) == before


def test_a_module_split_in_two_does_not_count(scripts):
    both = "def g(): return 1\ndef h(): return 2\n"
    whole = scripts(**{"pkg/n.py": both})
    halves = {"pkg/n.py": "from .h import h\ndef g(): return 1\n", "pkg/h.py": "def h(): return 2\n"}
    assert scripts(**halves) == whole


def test_what_an_edge_without_effect_leads_to_does_not_count(scripts, monkeypatch):
    monkeypatch.setattr(versions, "WITHOUT_EFFECT", (("pkg/m", "pkg/late"),))
    before = scripts()
    assert scripts(**{"pkg/late.py": "x = 3\n"}) == before
    assert scripts(**{"pkg/n.py": "def g(): return 2\n"}) != before


def test_a_declaration_of_settings_is_no_part_of_a_version_and_is_found_when_asked_for():
    declared = versions.SCRIPTS[0] / "bitplan/search/adaptive/settings.py"
    command = "adaptive_quantization_search.py"
    assert declared not in versions.files_behind(command) and declared in versions.files_behind(
        command, declarations=True
    )
    assert versions.SCRIPTS[0] / "bitplan/config/flags.py" in versions.files_behind(command)
