"""Files that exist whole or not at all, and hashes of their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader gets the old content or the new one, never a part of it.

    Folders are made as needed.

    Raises:
        OSError: with the file's name, also where a disk takes no more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:  # else its text is all there is
            error.filename = str(path)  # what is written to an open file fails without one
        raise
    finally:
        with suppress(OSError):  # what went wrong before says more
            temporary.unlink(missing_ok=True)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """`write_whole` of a mapping as JSON."""
    write_whole(path, (laid_out(content) + "\n").encode())


def parsed(text: str) -> Any:
    """The values of a text in JSON.

    Raises:
        ValueError: it is no JSON, or nested deeper than anything that was written here.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def laid_out(value: Any, width: int = 160) -> str:
    """JSON for human readers: values that fit share a line, and no number takes a line of its own.

    Args:
        value: anything that json.dumps takes.
        width: the most columns of a line; only a long text exceeds them.
    """
    return _laid_out(value, width, 0, 0)


def _laid_out(value: Any, width: int, depth: int, taken: int) -> str:
    """`laid_out`, where indentation, key and comma fill ``taken`` columns of the first line."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or not value or (depth and taken + len(line) <= width):
        return line
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    parts = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        # json.dumps turns a key that is no text into text.
        name = json.dumps({key: 0})[1:-2] if isinstance(value, dict) else ""
        parts.append(name + _laid_out(item, width, depth + 1, depth + len(name) + 2))
    parts = [f"{part}," for part in parts[:-1]] + parts[-1:]
    flat = depth > 0 and not any("\n" in part for part in parts)
    lines = [opened]
    for part in parts:
        # At the root each part has a line; elsewhere a line holds as many as fit, except parts of
        # several lines.
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
    places = (folder, *folder.absolute().parents)
    try:
        there = next(each for each in places if each.exists() or each.is_symlink())
        if not there.exists():
            raise UserError(
                f"{option} {folder}: {there} is a link to {os.readlink(there)}, which leads"
                " nowhere: make that folder, or name another"
            )
    except OSError as error:  # such as a name that is too long
        raise _unwritable(option, folder, error) from error
    writable(there, option, folder)
    return folder


def writable(folder: Path, option: str, named: Path | None = None) -> Path:
    """Make the folder, and prove that files can be written there before hours are spent.

    Args:
        folder: to be made.
        option: that named it.
        named: what it named, if not the folder itself.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(option, named or folder, error) from error
    return folder


def _unwritable(option: str, folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{option} {folder}: cannot be written to ({error.strerror}): name another folder"
    )


def hash_of_json(value: Any) -> str:
    """64 hexadecimal digits of plain values, independent of the order of a mapping's keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_of_file(path: Path) -> str:
    """64 hexadecimal digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits that differ if names, kinds, shapes or values differ."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        if values.stride() != (1,):  # a single element counts as contiguous, whatever its stride
            values = values.clone(memory_format=torch.contiguous_format)
        digest.update(f"{name} {values.dtype} {tuple(tensor.shape)}".encode())
        if values.numel():  # as bytes, because numpy knows no bfloat16
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_of_weights(module: nn.Module) -> str:
    """`hash_of_tensors` of a module's state dict; quantized layers keep more than tensors there."""
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        for number, part in enumerate(value if isinstance(value, tuple) else [value]):
            key = f"{name}.{number}" if isinstance(value, tuple) else name
            if isinstance(part, Tensor):
                tensors[key] = part.dequantize() if part.is_quantized else part
    return hash_of_tensors(tensors)
