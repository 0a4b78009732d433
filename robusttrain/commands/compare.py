"""What ``robusttrain compare A B ...`` does: parse, compare image by image, tell."""

from __future__ import annotations

from pathlib import Path

from robusttrain.commands.ranks import alone
from robusttrain.config.command_line import take
from robusttrain.core.console import console, say
from robusttrain.core.errors import UserError
from robusttrain.reporting import words
from robusttrain.reporting.comparison import compare, doubts, median_changes
from robusttrain.reporting.comparison_page import sentence, terminal, write_page
from robusttrain.reporting.runs import damaged, read_run
from robusttrain.storage.files import writable


def run(arguments: list[str]) -> None:
    """Compare each folder with the first one."""
    output, folders = take(arguments, lambda option: option == "--output", "give an HTML file")
    if unknown := [each for each in folders if each.startswith("-")]:
        raise UserError(f"{unknown[0]}: compare takes folders and --output: see --help")
    if len(folders) < 2:
        raise UserError("compare: name two folders or more that evaluate.py left: compare A B")
    places = [_folder(Path(each).resolve()) for each in folders]
    if again := [each for at, each in enumerate(folders) if places[at] in places[:at]]:
        raise UserError(f"compare: {again[0]} is named twice: an evaluation agrees with itself")
    if output:
        _refuse_other_files(Path(output[-1][1]))
    first, *others = [read_run(folder) for folder in folders]
    file = Path(output[-1][1]) if output else others[-1].folder / "comparison.html"
    writable(file.parent, "--output", file)
    for each in (first, *others):
        with damaged(each.folder / "results.json"):
            # The table and the page tell them.
            _ = each.json["target"], each.json["weights"], each.json["data"]
            _ = int(each.json["images"]), words.verdict(each.results), median_changes(each)
            _ = [dict(each.json.get(name) or {}) for name in ("sources", "code")]
    compared = []
    for other in others:
        with damaged(other.folder / "results.json"):
            compared.append((other, compare(first, other)))
    alone()
    for other, differences in compared:
        console.print(terminal(first, other, differences))
        for doubt in doubts(first, other):
            say(doubt)
        say(sentence(first, other, differences))
    write_page(first, compared, file)
    say(f"written: {file}")


def _folder(path: Path) -> Path:
    """The folder of an evaluation that is named by itself, or by its results.json."""
    return path.parent if path.is_file() else path


def _refuse_other_files(file: Path) -> None:
    """Raise UserError where the page would be no HTML file by its name: it could take the place of
    an evaluation's figures.
    """
    if file.is_dir():
        raise UserError(f"--output {file}: is a folder: name an HTML file in it")
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {file}: is no HTML file by its name: name a FILE.html")
