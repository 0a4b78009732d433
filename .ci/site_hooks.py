"""Hooks of mkdocs: what pages link to outside of docs/ becomes a page of the site.

Pages link to `../CONTRIBUTING.md` or `../examples/pgd.py` by the path in the repository, so that
the links work wherever the repository is looked at. The site knows docs/ alone. Here each such file
becomes a page `repository/PATH` (what is no Markdown is shown as code), and links to it follow. No
address of a host is needed. tests/test_documentation.py reads links with the same functions.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Where files from outside of docs/ lie in the site.
OUTSIDE = "repository/"
#: A link or a picture: its text, its target, the end.
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
#: What a site shows as it is.
STATIC = (".png", ".jpg", ".svg", ".json", ".css")


def relinked(text: str, change: Callable[[str], str]) -> str:
    """A page with ``change(target)`` in place of each link's target; code stays as it is."""
    lines, fence = [], False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fence = not fence
        elif not fence and not line.startswith("    "):
            line = LINK.sub(lambda link: link[1] + change(link[2]) + link[3], line)
        lines.append(line)
    return "\n".join(lines)


def targets(text: str) -> Iterator[str]:
    """The targets of a page's links."""
    found: list[str] = []
    relinked(text, lambda target: found.append(target) or target)  # type: ignore[func-returns-value]
    return iter(found)


def local(target: str) -> bool:
    """Whether a target is a file of the repository: no address, and no place on the same page."""
    return not re.match(r"[a-z]+:|#|/", target)


def uri_of(path: str) -> str:
    """The place in the site of a file of the repository, by its path from the root."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return OUTSIDE + path + ("" if path.endswith((".md", *STATIC)) else ".md")


def path_of(uri: str) -> str:
    """The path from the root of the file that lies at a place in the site; its inverse."""
    if not uri.startswith(OUTSIDE):
        return f"docs/{uri}"
    path = uri.removeprefix(OUTSIDE)
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def follow(target: str, path: str) -> str:
    """The path from the root of what a page at ``path`` links to; without its anchor."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target.partition("#")[0]))


def moved(text: str, path: str) -> str:
    """A page with its links as the site has them.

    Args:
        text: the page.
        path: where the page lies in the repository.
    """
    here = posixpath.dirname(uri_of(path))

    def change(target: str) -> str:
        to = follow(target, path)
        if not local(target) or not (ROOT / to).is_file():
            return target
        _, mark, anchor = target.partition("#")
        return posixpath.relpath(uri_of(to), here) + mark + anchor

    return relinked(text, change)


def page(path: str) -> str:
    """A file of the repository as a page."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        shown = [
            "".join(cell["source"])
            if cell["cell_type"] == "markdown"
            else code("".join(cell["source"]), "python")
            for cell in cells
        ]
        return "\n\n".join([*shown[:1], f"This is the notebook `{path}`.", *shown[1:]]) + "\n"
    language = {".py": "python", ".yml": "yaml"}.get(Path(path).suffix, Path(path).suffix[1:])
    return f"# {path}\n\n{code(text, language)}\n"


def code(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def in_nav(nav: Any) -> Iterator[str]:
    """The places that mkdocs.yml names in its navigation."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list | dict):
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from in_nav(part)


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each file outside of docs/ that the navigation or a page names."""
    from mkdocs.structure.files import File

    waiting = [path_of(uri) for uri in in_nav(config.nav)]
    waiting += [path_of(file.src_uri) for file in files.documentation_pages()]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():
            continue  # mkdocs itself says what is missing
        seen.add(path)
        if not path.startswith("docs/"):
            if path.endswith(STATIC):
                content: str | bytes = (ROOT / path).read_bytes()
            else:
                content = page(path)
            files.append(File.generated(config, uri_of(path), content=content))
        if path.endswith((".md", ".ipynb")):
            names = targets(page(path))
            waiting += [follow(target, path) for target in names if local(target)]
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside of docs/, and from there, as the site has them."""
    return moved(markdown, path_of(page.file.src_uri))
