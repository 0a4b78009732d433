"""Files that are there whole or not at all, and hashes of what is in them: the one place for
both.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, never half of it; folders are
    made as needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(found: Mapping[str, Any], path: Path) -> None:
    """`write_whole` of a mapping as JSON."""
    write_whole(path, (laid_out(found) + "\n").encode())


def laid_out(value: Any, width: int = 160) -> str:
    """JSON for readers: what fits stands on one line, and no number takes a line of its own.

    Args:
        value: what json.dumps takes.
        width: columns that lines should keep to; a long text goes beyond them.
    """
    return _laid_out(value, width, 0, 0)


def _laid_out(value: Any, width: int, depth: int, taken: int) -> str:
    """``taken`` are the columns of the first line that others fill: indentation, key and comma."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or not value or (depth and taken + len(line) <= width):
        return line
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    parts = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        # With what json.dumps makes of a key that is no text.
        name = json.dumps({key: 0})[1:-2] if isinstance(value, dict) else ""
        parts.append(name + _laid_out(item, width, depth + 1, depth + len(name) + 2))
    parts = [f"{part}," for part in parts[:-1]] + parts[-1:]
    flat = depth > 0 and not any("\n" in part for part in parts)
    lines = [opened]
    for part in parts:
        # At the root one on a line; elsewhere as many as it holds, but for those of several lines.
        if lines[-1] == opened:
            joined, room = opened + part, width - taken
        else:
            joined, room = f"{lines[-1]} {part}", width - (taken if len(lines) == 1 else depth + 1)
        if flat or lines[-1] != opened:
            fits = depth and "\n" not in joined and len(joined) < room
            lines[-1:] = [joined] if fits else [lines[-1], part]
        else:
            lines.append(part)
    pad = "\n" + " " * (depth + 1)
    return pad.join(lines) + (closed if flat else f"{pad[:-1]}{closed}")


def may_write(folder: Path, option: str) -> Path:
    """Prove that files can be written into a folder before hours are spent, and leave nothing: what
    is refused for other reasons leaves no folders.

    Raises:
        UserError: it cannot be made or written to.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    writable(there, option, folder)
    return folder


def writable(folder: Path, option: str, named: Path | None = None) -> Path:
    """Make the folder, and prove that files can be written there before hours are spent.

    Args:
        folder: to be made.
        option: that named it.
        named: what it named, if not the folder itself.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {named or folder}: cannot be written to ({error.strerror}): name another"
            " folder"
        ) from error
    return folder


def hash_of_json(value: Any) -> str:
    """64 hexadecimal digits of plain values, the same whatever the order of a mapping's keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_of_file(path: Path) -> str:
    """64 hexadecimal digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits that differ where names, kinds, shapes or values do."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        if values.numel():  # as bytes, because numpy knows no bfloat16
            found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hash_of_weights(module: nn.Module) -> str:
    """`hash_of_tensors` of all that a module was trained to."""
    return hash_of_tensors(module.state_dict())
