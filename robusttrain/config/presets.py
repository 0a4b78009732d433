"""Presets: small YAML files, found by name.

``configs/KIND/NAME.yaml`` is a partial configuration. Names are looked for in ``configs/`` of the working directory
first, then in the repository that this package stands in, then in the installed package.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from robusttrain.core.errors import UserError

KINDS = ("data", "model", "defense", "training", "attack", "suite", "surrogate")


def folders() -> list[Path]:
    """The folders that presets are looked for in, first match first."""
    package = Path(__file__).parents[1]
    candidates = [Path("configs"), package.parent / "configs", package / "configs"]
    unique = {candidate.resolve(): candidate for candidate in reversed(candidates) if candidate.is_dir()}
    return list(reversed(unique.values()))


def names(kind: str) -> dict[str, Path]:
    """All presets of a kind, by name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((folder / kind).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find(kind: str, name: str, option: str | None = None) -> Path:
    """The file of a preset's name, or of a path to a YAML file; ``option`` is what the user typed, if not --kind.

    Raises:
        UserError: there is none; the nearest names are suggested.
    """
    option = option or f"--{kind}"
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{option} {name}: no such file")
        return Path(name)
    known = names(kind)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
    raise UserError(f"{option} {name}: no such preset; {hint} (--list shows all; a path to a YAML file works too)")


def read(kind: str, name: str, option: str | None = None) -> dict[str, Any]:
    """The content of a preset; arguments as for ``find``.

    Raises:
        UserError: no such preset, or a file that is no YAML mapping.
    """
    return read_yaml(find(kind, name, option), f"{option or '--' + kind} {name}")


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """The content of a YAML file that ``option`` named.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{option}: {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path} must be a mapping of options to values")
    return content


def about(path: Path) -> str:
    """The first comment of a preset: what it is, in one line."""
    first = path.read_text().splitlines()[:1]
    return first[0].lstrip("# ") if first and first[0].startswith("#") else ""
