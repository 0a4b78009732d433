"""What a data set reads, looked at before anything rests on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.core.labels import as_labels, check_labels
from robusttrain.data.image_files import ImageFiles
from robusttrain.data.notes import note
from robusttrain.storage.raised import told

_FACTS = "Facts(classes, channels, height and width in pixels)"


class Facts(NamedTuple):
    """What a model must know about its data. ``image_size`` is height and width in pixels."""

    num_classes: int
    channels: int
    image_size: int


def checked_facts(facts: Callable[..., Any]) -> Callable[..., Facts]:
    """The method ``facts`` of a data set of the user's, and its answer as `Facts`.

    Raises:
        UserError: by the method, where it raises anything, or answers anything else.
    """

    @functools.wraps(facts)
    def checked(self: Any) -> Facts:
        who = type(self).__name__
        if "_train" not in vars(self):
            raise UserError(
                f"data: {who}.__init__ does not call super().__init__(root, batch_size, validation,"
                " crop, flip, seed, workers)"
            )
        with told(f"data: {who}.facts()", type(self)):
            given = facts(self)
        whole = isinstance(given, tuple | list) and len(given) == len(Facts._fields)
        if not whole or not all(isinstance(each, Integral) and int(each) > 0 for each in given):
            raise UserError(
                f"data: {who}.facts() must return {_FACTS}, whole numbers above 0; it returned"
                f" {given!r:.80}"
            )
        return Facts(*map(int, given))

    return checked


def same_classes(names: Sequence[str], others: Sequence[str], here: str) -> None:
    """Raise UserError unless two splits name the same classes in the same order.

    Args:
        names: of this split.
        others: of the split that was read before.
        here: what read this split, for the error.
    """
    if list(names) != list(others):
        raise UserError(
            f"{here} names the classes {_few(names)}, and the other split {_few(others)}: give both"
            " the same names in the same order, that of the labels' numbers"
        )


def first_moved(names: Sequence[str], others: Sequence[str]) -> int | None:
    """The first number that the other order gives to another class, while the class of that name
    stands elsewhere in it; None where there is no such number, or the other has more or fewer
    classes.

    Names are the same in upper and lower case, unless that makes two classes one. Where all names
    of an order are numbers, these may count from elsewhere: unless both have the same, they say
    nothing.
    """
    if len(names) != len(others):
        return None
    counted = any(all(name.isdecimal() for name in each) for each in (names, others))
    if counted and sorted(names) != sorted(others):
        return None
    ours, theirs = ([name.casefold() for name in each] for each in (names, others))
    if any(len({*each}) < len(each) for each in (ours, theirs)):
        ours, theirs = [*names], [*others]
    there = {*theirs}
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((number for number, (one, to) in pairs if one != to and one in there), None)


def same_order(
    names: Sequence[str],
    theirs: Sequence[str],
    here: str,
    notes: list[str],
    fix: str = "number the labels, and name the classes, in the checkpoint's order",
) -> None:
    """Note where a data set names its classes otherwise than the checkpoint does.

    Args:
        names: in the order of the data set's numbers.
        theirs: in the order of the checkpoint's numbers.
        here: what read the data set, for the error.
        notes: gets the line.
        fix: what to do where a class stands elsewhere in the checkpoint's order.

    Raises:
        UserError: a class of both has another number in the checkpoint, so that images would be
            judged by the number of another class.
    """
    if list(names) == list(theirs):
        return
    if (number := first_moved(names, theirs)) is not None:
        raise UserError(
            f"{here}: class {number} is {names[number]!r}, and in the checkpoint"
            f" {theirs[number]!r}: {fix} ({_few(theirs)})"
        )
    if len(names) == len(theirs):
        note(
            notes,
            f"{here} names its classes {_few(names)}, and the checkpoint {_few(theirs)}: taken as"
            " the same by their numbers",
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def checked_split(
    read: Any, who: str, split: str, classes: int, channels: int, size: int
) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
    """Images (N, C, H, W), labels (N,) int64 and names of the classes, of what ``_read`` returned.

    Args:
        read: the return value.
        who: the data set's class, for errors.
        split: that was read.
        classes, channels, size: as its ``facts`` say.

    Raises:
        UserError: anything that does not go together, or does not agree with the facts.
    """
    said = f"data: {who}._read({split!r})"
    if not isinstance(read, tuple | list) or len(read) != 3:
        got = f"{type(read).__name__}{f' of {len(read)}' if isinstance(read, tuple | list) else ''}"
        raise UserError(f"{said} must return images, labels and names of the classes, not a {got}")
    images, labels, names = read
    if isinstance(images, np.ndarray):
        images = torch.as_tensor(images)
    if not isinstance(images, Tensor | ImageFiles):
        raise UserError(
            f"{said}: images are a {type(images).__name__}: return a tensor of bytes (N, C, H, W),"
            " or ImageFiles"
        )
    labels = as_labels(labels)
    if not len(images):
        raise UserError(f"{said}: there is no image")
    if isinstance(images, Tensor):
        images = _pixels(images, said, channels, size)
    if labels.shape != (len(images),) and len(labels.shape) <= 1:
        raise UserError(f"{said}: {len(images)} images, and {labels.numel()} labels")
    try:
        labels = check_labels(labels, images if isinstance(images, Tensor) else labels, classes)
    except UserError as error:
        raise UserError(f"{said}: {error}") from error
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UserError(
            f"{said}: names of the classes are a {type(names).__name__}: return a list of"
            f" {classes} names, in the order of their numbers"
        )
    names = [str(name) for name in names]
    if len(names) != classes:
        raise UserError(f"{said}: {len(names)} names, and facts() says {classes} classes")
    return images, labels.cpu(), names


def _pixels(images: Tensor, said: str, channels: int, size: int) -> Tensor:
    """The images, if they are (N, C, H, W) with values that leave no doubt."""
    shape = tuple(images.shape)
    # Images that are not square are known by either side.
    if len(shape) != 4 or shape[1] != channels or size not in shape[2:]:
        raise UserError(
            f"{said}: images are {shape}, and facts() says {channels} x {size} x {size}:"
            " channels come first, (N, C, H, W)"
        )
    if images.dtype in (torch.uint8, torch.bool):
        return images
    kind = str(images.dtype).removeprefix("torch.")
    low, high = (float(end) for end in torch.aminmax(images.detach()))
    # What rounding leaves outside [0, 1], as resizing does, attacks clamp.
    off = max(1e-6, torch.finfo(images.dtype).eps) if images.is_floating_point() else 0
    if not (low >= -off and high <= (1 + off if images.is_floating_point() else 255)):  # nor NaN
        raise UserError(
            f"{said}: images are {kind} in [{low:.3g}, {high:.3g}]: values must lie in [0, 1], or"
            " be bytes from 0 to 255: normalise inside the model"
        )
    return images if images.is_floating_point() else images.to(torch.uint8)
