"""Reading CIFAR-10 and CIFAR-100 in either of their two official layouts.

The binary version is plain bytes. The Python version is made of pickles, which run code when they
are read. torchvision reads these only if the MD5 sum of each file is the official one, so they are
read through torchvision.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.data.base import SplitName, fetch, missing_data

_PIXELS = 3 * 32 * 32


class Layout(NamedTuple):
    """The files of a CIFAR data set.

    Attributes:
        title: the data set's name, for messages.
        classes: number of classes.
        folder: folder of the binary version.
        files: files of the binary version, by split.
        class_names: file with the class names, one a line.
        label_bytes: bytes before the pixels of an image; the last of these bytes is the class.
        python: torchvision's reader of the Python version.
    """

    title: str
    classes: int
    folder: str
    files: dict[SplitName, tuple[str, ...]]
    class_names: str
    label_bytes: int
    python: type[torchvision.datasets.CIFAR10]


def check(root: Path, layout: Layout) -> None:
    """Raise a UserError unless one of the versions is below ``root``."""
    if _binary_folder(root, layout) is None and not (root / layout.python.base_folder).is_dir():
        looked_for = f"{layout.folder}/ and {layout.python.base_folder}/"
        fix = "give --data.root DIR, or --data.download true"
        raise missing_data(layout.title, root, looked_for, fix)


def download(root: Path, layout: Layout) -> None:
    """Download the Python version, unless a complete version exists."""
    if _binary_folder(root, layout) is None:
        fetch(layout.title, root, lambda: layout.python(str(root), download=True))


def read(root: Path, layout: Layout, split: SplitName) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 and class names of one split."""
    check(root, layout)
    folder = _binary_folder(root, layout)
    if folder is not None:
        return _read_binary(folder, layout, split)
    try:
        data = layout.python(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        files = root.absolute() / layout.python.base_folder
        fix = "give --data.download true to fetch it again, or another --data.root DIR"
        raise UserError(
            f"{files} is incomplete or differs from the official {layout.title}: {fix}"
        ) from error
    return (
        torch.from_numpy(data.data).permute(0, 3, 1, 2),
        torch.tensor(data.targets),
        list(data.classes),
    )


def _binary_folder(root: Path, layout: Layout) -> Path | None:
    """The folder of the binary version: the one of the official archive, or ``root`` itself."""
    folders = (root / layout.folder, root)
    return next(
        (folder for folder in folders if (folder / layout.files["test"][0]).is_file()), None
    )


def _read_binary(
    folder: Path, layout: Layout, split: SplitName
) -> tuple[Tensor, Tensor, list[str]]:
    record = layout.label_bytes + _PIXELS
    records = []
    for name in layout.files[split]:
        content = np.fromfile(_existing(folder / name, layout), np.uint8)
        if not len(content) or len(content) % record:
            raise UserError(
                f"{folder / name} is cut short (not a multiple of {record} bytes): get it again"
            )
        records.append(content.reshape(-1, record))
    data = torch.from_numpy(np.concatenate(records))
    labels = data[:, layout.label_bytes - 1].long()
    names = _existing(folder / layout.class_names, layout).read_text(errors="replace").split()
    if len(names) != layout.classes or labels.max() >= layout.classes:
        raise UserError(
            f"{folder} does not have the {layout.classes} classes of {layout.title}: get it again"
        )
    return data[:, layout.label_bytes :].reshape(-1, 3, 32, 32).contiguous(), labels, names


def _existing(path: Path, layout: Layout) -> Path:
    if not path.is_file():
        raise missing_data(
            layout.title, path.parent, path.name, "get it again, or give --data.root DIR"
        )
    return path
