"""What mkdocs needs to make a site of pages that are written for GitHub: files outside docs/, and links to them.

A page's links are relative to its place in the repository. README.md becomes the first page; other pages outside docs/ keep their
names, and any other file that a page links to (config.yaml, a profile) is copied into the site.
"""

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
# Pages outside docs/ that the site has, by their places there.
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "README.zh-CN.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
LINK = re.compile(r"(\]\()([^()\s#:]+)(#[^()\s]*)?(\))")
# Code, in which nothing is a link: fenced, or between backquotes.
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", flags=re.MULTILINE | re.DOTALL)

ITEM = re.compile(r"(- |\d+\. )")


def in_repository(site_path: str) -> str:
    """Return where a page of the site is in the repository."""
    places = {site: path for path, site in PAGES.items()}
    return places.get(site_path, DOCS + site_path)


def in_site(path: str) -> str:
    """Return where a file of the repository is in the site."""
    return PAGES.get(path) or (path.removeprefix(DOCS) if path.startswith(DOCS) else path)


def led(target: str, page: str) -> str:
    """Return a link's target from a page of the site to what it leads to from the page in the repository."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(page)), target))
    return posixpath.relpath(in_site(path), posixpath.dirname(page) or ".")


def on_files(files: "Files", config) -> "Files":
    """Take in the pages outside docs/, and every other file outside it that a page links to."""
    from mkdocs.structure.files import File

    for path, site in PAGES.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / path)))
    for page in [each for each in files if each.is_documentation_page()]:
        here = posixpath.dirname(in_repository(page.src_uri))
        for _, target, *_ in LINK.findall(CODE.sub("", page.content_string)):
            path = posixpath.normpath(posixpath.join(here, target))
            if (ROOT / path).is_file() and files.get_file_from_path(in_site(path)) is None:
                files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def with_lists(text: str) -> str:
    """Return Markdown with an empty line before every list: GitHub needs none, Python-Markdown does."""
    lines, inside = [], False
    for line in text.split("\n"):
        begins = ITEM.match(line) is not None
        if begins and not inside and lines and lines[-1].strip():
            lines.append("")
        inside = begins or (inside and bool(line.strip()))
        lines.append(line)
    return "\n".join(lines)


def on_page_markdown(markdown: str, page, config, files: "Files") -> str:
    """Return a page with its links led to their places in the site, and its lists set apart."""
    site = page.file.src_uri

    def plain(text: str) -> str:
        return LINK.sub(lambda link: f"{link[1]}{led(link[2], site)}{link[3] or ''}{link[4]}", text)

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [plain(markdown[end : code.start()]), code[0]]
        end = code.end()
    return with_lists("".join((*parts, plain(markdown[end:]))))
