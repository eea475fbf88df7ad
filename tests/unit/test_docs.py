"""The pages: every relative link leads to a file and a heading, and every command that a page shows is one that exists, with its flags."""

import importlib
import importlib.util
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from bitplan.console.main import COMMANDS
from tests.conftest import ROOT, SCRIPTS

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "demo" / "README.md"])
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"\b(scripts|benchmarks)/(\w+\.py)\b")
# What ends a command in a line: a remark, a pipe, another command.
SEPARATOR = re.compile(r"\s#\s|\s\|\s|&&|;")
# A flag, but not a part of a path or of a word.
FLAG = re.compile(r"(?<![\w/-])--?[A-Za-z][\w-]*")


def text_of(page: Path) -> str:
    """A page without its fenced code, whose brackets are no links."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links_of(page: Path) -> list[str]:
    """The targets of a page's links that lead to no other site."""
    return [target for target in LINK.findall(text_of(page)) if not re.match(r"[a-z]+:", target)]


def anchor_of(heading: str) -> str:
    """The anchor that GitHub, and the site by pymdownx.slugs, give a heading."""
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """The anchors of a page's headings and of its `<a id>`."""
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", text_of(page), flags=re.MULTILINE)
    return frozenset([*map(anchor_of, headings), *re.findall(r"<a id=\"([^\"]+)\"", text_of(page))])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    wrong = []
    for target in links_of(page):
        path, _, anchor = unquote(target).partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or not place.is_relative_to(ROOT):
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors_of(place):
            wrong.append(f"{target}: no such heading; there are {', '.join(sorted(anchors_of(place)))}")
    assert not wrong, "\n".join(wrong)


def blocks_of(page: Path) -> list[str]:
    """The lines of a page's indented and fenced code; one that continues in the next is one line."""
    blocks = [line for block in FENCE.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()[1:-1]]
    indented = [line for line in text_of(page).splitlines() if line.startswith("    ")]
    return re.sub(r"\\\n\s*", " ", "\n".join([*blocks, *indented])).splitlines()


def code_of(page: Path) -> list[str]:
    """The lines of a page's code, and its inline code."""
    return [*blocks_of(page), *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text_of(page))]


@cache
def parser_of(name: str) -> ArgumentParser:
    """The parser of `NAME.py`, or of `bitplan NAME`."""
    module = name.removesuffix(".py") if name.endswith(".py") else f"bitplan.console.{name}"
    return importlib.import_module(module).build_parser()


def commands_in(line: str) -> Iterator[tuple[str, str]]:
    """Yield the commands that a line shows, `NAME.py` or what follows `bitplan`, each with its words."""
    command = SEPARATOR.split(line)[0]
    if script := re.match(r"\s*(?:python )?(?:scripts/)?(\w+\.py)\b(.*)", command):
        yield script[1], script[2]
    if program := re.match(r"\s*bitplan (\w+)(.*)", command):
        yield program[1], program[2]


def unknown_flags(name: str, words: str) -> list[str]:
    """The flags among a command's words that its parser does not have; either spelling will do."""
    parser = parser_of(name)
    known = {*parser._option_string_actions, *getattr(parser, "aliases", {})}
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "''", words)
    return [flag for flag in FLAG.findall(plain) if flag not in known and flag.replace("_", "-") not in known]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_shown_exists_and_has_the_flags_shown(page):
    wrong = []
    for name, words in (command for line in code_of(page) for command in commands_in(line)):
        if name.endswith(".py") and not (SCRIPTS / name).exists():
            if FLAG.search(words):
                wrong.append(f"{name}: no such command")
        elif not name.endswith(".py") and name not in COMMANDS:
            wrong.append(f"bitplan {name}: no such command")
        elif flags := FLAG.search(words) and unknown_flags(name, words):
            wrong.append(f"{name} has no {', '.join(flags)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_program_and_benchmark_named_is_there(page):
    named = {(folder, name) for folder, name in SCRIPT.findall(page.read_text(encoding="utf-8"))}
    absent = [f"{folder}/{name}" for folder, name in named if not (ROOT / folder / name).exists()]
    invented = {"NAME.py", "mine.py"}
    assert [path for path in absent if path.rpartition("/")[2] not in invented] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_shown_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {match[1] for line in code_of(page) if (match := re.match(r"\s*make ([a-z-]+)\b", line))}
    assert shown <= targets


def test_generated_files_are_current():
    """config.yaml, the schema, and the pages written from error codes, settings and parsers."""
    import write_config

    stale = [name for name, text in write_config.generated().items() if (ROOT / name).read_text("utf-8") != text]
    assert stale == [], "run scripts/write_config.py --fix"


def test_generated_pages_are_the_same_on_every_machine():
    pages = [(ROOT / "docs" / "reference" / name).read_text("utf-8") for name in ("flags.md", "settings.md")]
    assert str(ROOT) not in "".join(pages) and "all cores" in pages[0]


def test_every_page_of_docs_is_in_the_sites_navigation():
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.MULTILINE)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    outside = ["index.md", "demo/README.md", *(page.name for page in ROOT.glob("*.md") if page.name != "README.md")]
    assert sorted(listed) == sorted([*there, *outside])


def test_every_command_is_named_on_the_page_of_commands():
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    commands = [path.name for path in SCRIPTS.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")]
    assert [name for name in commands if f"`{name}`" not in page] == []


@pytest.fixture(scope="module")
def site():
    """The module that makes a site of the pages."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "target", "led"),
    [
        ("index.md", "docs/tutorial.md", "tutorial.md"),
        ("index.md", "config.yaml", "config.yaml"),
        ("tutorial.md", "../README.md", "index.md"),
        ("tutorial.md", "errors.md", "errors.md"),
        ("reference/settings.md", "../../config.yaml", "../config.yaml"),
        ("reference/flags.md", "../commands.md", "../commands.md"),
        ("README.zh-CN.md", "README.md", "index.md"),
    ],
)
def test_a_link_of_the_repository_leads_to_the_same_page_in_the_site(site, page, target, led):
    assert site.led(target, page) == led


def test_links_in_code_stay_and_lists_are_set_apart(site):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    text = "Never:\n- a [page](docs/faq.md#limits)\n  of `[x](docs/y.md)`\n- b\n"
    made = site.on_page_markdown(text, page, None, None)
    assert made == "Never:\n\n- a [page](faq.md#limits)\n  of `[x](docs/y.md)`\n- b\n"


def whole_commands(page: Path) -> list[str]:
    """The lines of a page that show a whole command, as `python scripts/NAME.py --flag value`."""
    shown = [SEPARATOR.split(line)[0].strip() for line in blocks_of(page)]
    return [line for line in shown if re.match(r"(python scripts/\w+\.py|bitplan [a-z]+) \S", line)]


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page in PAGES for line in whole_commands(page)], ids=lambda each: str(each)[:60]
)
def test_a_whole_command_is_one_that_its_parser_takes(page, line):
    words = shlex.split(line)
    name, rest = (Path(words[1]).name, words[2:]) if words[0] == "python" else (words[1], words[2:])
    parser_of(name).parse_args(rest)
