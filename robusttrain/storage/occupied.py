"""What lies in a folder for results already: an evaluation, or a measurement of transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robusttrain.core.errors import UserError
from robusttrain.storage.files import parsed

#: What a results.json is of.
EVALUATION = "an evaluation"
TRANSFER = "a measurement of transfer"


def content_of(folder: Path) -> dict[str, Any]:
    """What a folder's results.json holds; nothing where there is none, or none that can be read."""
    try:
        content = parsed((folder / "results.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def kind_of(content: dict[str, Any]) -> str | None:
    """What the content of a results.json is of, if of anything that is known."""
    if "schema" in content:
        return EVALUATION
    return TRANSFER if {"models", "attacks", "plan"} <= {*content} else None


def refuse_another(folder: Path, kind: str) -> None:
    """Refuse a folder that holds the results of something else: nothing takes their place.

    Args:
        folder: for results.
        kind: of those that are to come.

    Raises:
        UserError: it holds others.
    """
    there = kind_of(content_of(folder))
    if there not in (None, kind):
        raise UserError(
            f"--output {folder}: holds {there}, whose results this would overwrite: name another"
            " folder"
        )
