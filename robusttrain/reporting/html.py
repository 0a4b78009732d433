"""A page in one file: no script, no network, light and dark, and fit to print.

Names, paths and commands come from files, and files may come from elsewhere. So whatever is text
here is escaped, and only `Html` is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Html(NamedTuple):
    """Text that is HTML already."""

    text: str


Content = Html | str | int | float


def html(content: Content) -> str:
    """Content as HTML: escaped unless it is HTML already."""
    return content.text if isinstance(content, Html) else escape(str(content))


def in_bytes(page: str) -> bytes:
    """A page as a file holds it; bytes of a name that are no UTF-8, as in an old archive, as
    escapes.
    """
    return page.encode(errors="backslashreplace")


def tag(name: str, *content: Content, **attributes: str) -> Html:
    """An element; ``class_`` gives its class."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{said}>{''.join(map(html, content))}</{name}>")


def joined(parts: Iterable[Html]) -> Html:
    """Elements one after another."""
    return Html("\n".join(part.text for part in parts))


def table(
    head: Sequence[str], rows: Iterable[Sequence[Content]], numbers: Iterable[int] = ()
) -> Html:
    """A table.

    Args:
        head: names of the columns.
        rows: their cells.
        numbers: columns of numbers, set to the right.
    """
    right = {*numbers}

    def cells(name: str, row: Sequence[Content]) -> str:
        return "".join(
            tag(name, each, **({"class_": "number"} if place in right else {})).text
            for place, each in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return Html(
        f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def section(title: str, *content: Html) -> Html:
    """A part of the page under its title; nothing where there is no content."""
    inner = joined(each for each in content if each.text)
    return tag("section", tag("h2", title), inner) if inner.text else Html("")


def folded(summary: str, *content: Html) -> Html:
    """Content that a reader opens."""
    return tag("details", tag("summary", summary), joined(content))


def page(title: str, *content: Html) -> str:
    """A whole document."""
    # Even if something slipped through, nothing could run and nothing be fetched.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
{joined(each for each in content if each.text).text}
</main>
</body>
</html>
"""


#: Colours of Okabe & Ito 2008, lighter on dark paper.
STYLE = """\
:root { --paper: #ffffff; --ink: #1a1d21; --faint: #5d6570; --line: #d9dde2; --wash: #f4f6f8;
  --blue: #0072b2; --orange: #c25100; --band: #0072b233; --good: #00734f; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e8eaed; --faint: #a2abb6; --line: #363c44; --wash: #1e2329;
    --blue: #56b4e9; --orange: #f0a352; --band: #56b4e940; --good: #4cc9a0; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.sub, .note, figcaption { color: var(--faint); font-size: .9rem; overflow-wrap: anywhere; }
.verdict { font-size: 1.2rem; line-height: 1.5; border-left: 4px solid var(--blue);
  padding: .6rem 0 .6rem 1rem; margin: 1.4rem 0; }
.verdict.doubt { border-color: var(--orange); }
.verdict p { max-width: none; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; }
td { overflow-wrap: break-word; }
td:first-child { min-width: 6rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: var(--wash); padding: .8rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, "Liberation Mono", monospace; }
code { font: .9em ui-monospace, "Liberation Mono", monospace; overflow-wrap: anywhere; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--blue); }
svg { display: block; width: 100%; min-width: 34rem; height: auto; margin: .4rem 0; }
svg text { fill: var(--ink); font-size: 13px; }
svg .faint { fill: var(--faint); }
svg .grid { stroke: var(--line); }
svg .bar { fill: var(--blue); fill-opacity: .55; }
svg .bar.clean { fill: var(--faint); fill-opacity: .45; }
svg .bar.worst { fill: var(--orange); fill-opacity: .7; }
svg .whisker { stroke: var(--ink); stroke-width: 1.6; }
svg .line { stroke: var(--blue); stroke-width: 2.2; fill: none; }
svg .band { fill: var(--band); }
svg .second { stroke: var(--orange); stroke-dasharray: 7 4; }
svg .dot.second { fill: var(--orange); stroke: none; }
svg .band.second { fill: var(--orange); fill-opacity: .15; stroke: none; }
svg .dot { fill: var(--blue); }
svg .dot.own { fill: var(--orange); }
svg .chance { stroke: var(--faint); stroke-dasharray: 4 4; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.2rem; }
.card { margin: 0; break-inside: avoid; }
.panels { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px; }
.panels img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--wash);
  image-rendering: pixelated; display: block; }
.panels span { font-size: .75rem; color: var(--faint); }
.masked, .weak { color: var(--bad); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
@page { margin: 15mm; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; } svg, tr, .verdict { break-inside: avoid; }
  .wide { overflow: visible; } svg { min-width: 0; }
  .bar, .band, .dot, img { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
