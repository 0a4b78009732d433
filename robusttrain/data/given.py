"""Images that a caller gives in Python: as tensors, a torch data set, or a loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robusttrain.core.errors import OptionError, UserError, at_least
from robusttrain.core.labels import as_labels, check_labels
from robusttrain.data.base import Facts, ImageData, SplitName
from robusttrain.data.batches import ATTACKED, seeded_order
from robusttrain.data.notes import note

#: Names of images and of labels in mappings (Hugging Face, and others).
IMAGES, LABELS = ("image", "images", "pixel_values", "img"), ("label", "labels", "fine_label")


class GivenImages(ImageData):
    """Images in memory, for evaluation only.

    Args:
        images: (N, C, H, W), floats in [0, 1] or uint8.
        labels: (N,), class numbers 0..K-1.
        num_classes: K.
        class_names: of the K classes; None for their numbers.
        batch_size: images of a batch.

    Raises:
        UserError: images or labels have another form.
    """

    name = "given"
    trains = False

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        class_names: list[str] | None = None,
        batch_size: int = 128,
    ) -> None:
        super().__init__("", batch_size, validation=0, crop=0, flip=False, seed=0, workers=0)
        names = class_names or [str(number) for number in range(num_classes)]
        if len(names) != num_classes:
            raise UserError(f"classes: {len(names)} names for {num_classes} classes")
        if images.dtype == torch.uint8 and int(images.max()) == 1:
            raise UserError(
                "images: uint8 of 0 and 1 alone leaves open whether 1 is white or nearly black:"
                " give floats in [0, 1], or uint8 from 0 to 255"
            )
        if images.dtype == torch.uint8:
            note(self.notes, "images: whole numbers from 0 to 255 are taken for [0, 1]")
        self.images, self.labels = images.cpu(), check_labels(labels, images, num_classes).cpu()
        self._facts, self._names = Facts(num_classes, images.shape[1], images.shape[-1]), names

    def facts(self) -> Facts:
        """The given number of classes, and the images' own channels and size."""
        return self._facts

    def _read(self, split: SplitName) -> tuple[Tensor, Tensor, list[str]]:
        if split == "train":
            raise UserError("images: these were given to be evaluated, none to train on")
        return self.images, self.labels, self._names


def _enough(count: int | None, images: int) -> None:
    """Raise UserError where more images were asked for than there are."""
    if count is not None and count > images:
        raise OptionError(
            "count", count, f"there are {images} images: leave it out for all of them"
        )


def collected(
    images: Tensor | Dataset[Any] | DataLoader[Any] | Iterable[Any],
    labels: Tensor | None,
    count: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,) from a tensor, a data set or a loader.

    A data set is often sorted by class, so the seed chooses among its images; of a loader, and of
    what gives no image by its number, the first are taken.

    Args:
        images: a tensor, an array of numpy or a list of tensors; or a data set of pairs (image,
            label) or mappings, or a loader of batches of either.
        labels: (N,), for images alone; None for the others, which bring their own labels.
        count: how many, but of a tensor, which is given back whole; None takes all.
        seed: chooses them.

    Raises:
        UserError: labels are missing or given twice, items have another form, or there is no image.
    """
    if count is not None:
        at_least("count", count, 1)
    if isinstance(images, np.ndarray):
        images = torch.as_tensor(images)
    elif labels is not None and isinstance(images, list | tuple) and _are_images(images):
        images = torch.stack(list(images))
    if isinstance(images, Tensor):
        if labels is None:
            raise UserError("labels: give one for each image: evaluate(model, images, labels)")
        labels = as_labels(labels)
        images, labels = _checked(images, labels)
        _enough(count, len(images))
        return images, labels
    if labels is not None:
        raise UserError(
            f"labels: {type(images).__name__} brings labels of its own: leave these out"
        )
    batched = isinstance(images, DataLoader) and images.batch_size is not None
    parts: list[tuple[Tensor, Tensor]] = []
    have = 0
    for item in _items(images, count, seed):
        image, label = _pair(item)
        batch = (image, label) if batched or image.dim() == 4 else (image[None], label.reshape(1))
        parts.append(batch)
        have += len(batch[0])
        if count is not None and have >= count:
            break
    if not parts:
        raise UserError("images: there are none")
    _enough(count, have)
    shapes = {tuple(image.shape[1:]) for image, _ in parts}
    if len(shapes) > 1:
        raise UserError(
            f"images: come in different shapes, {' and '.join(map(str, sorted(shapes)[:2]))}: let"
            " the data set's transform give all of them one"
        )
    return _checked(
        torch.cat([image for image, _ in parts])[:count],
        torch.cat([label for _, label in parts])[:count],
    )


def _checked(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels, if there is a label for each image."""
    if images.dim() != 4 or not len(images):
        raise UserError(f"images: expected (N, C, H, W), N at least 1, got {tuple(images.shape)}")
    if not images.is_floating_point() and images.dtype not in (torch.uint8, torch.bool):
        raise UserError(
            f"images: {str(images.dtype).removeprefix('torch.')} leaves open whether 1 is white or"
            " 255: give floats in [0, 1], or uint8 from 0 to 255"
        )
    return images, check_labels(labels, images)


def _items(images: Any, count: int | None, seed: int) -> Iterable[Any]:
    """The items of a data set, which may offer only its length and items by number; some of them,
    chosen by the seed, where they have numbers.
    """
    numbered = all(hasattr(images, name) for name in ("__len__", "__getitem__"))
    if isinstance(images, Iterable) and (count is None or not numbered):
        return images
    if count is None:
        return (images[number] for number in range(len(images)))
    _enough(count, len(images))
    chosen = seeded_order(len(images), seed, ATTACKED)[:count].sort().values
    return (images[number] for number in chosen.tolist())


def _pair(item: Any) -> tuple[Tensor, Tensor]:
    """Image and label of an item."""
    if isinstance(item, Mapping):
        named = [
            next((item[key] for key in keys if key in item), None) for keys in (IMAGES, LABELS)
        ]
        if any(part is None for part in named):
            raise UserError(
                f"images: items are mappings of {', '.join(map(str, item))}: expected one of"
                f" {', '.join(IMAGES)} and one of {', '.join(LABELS)}"
            )
        item = named
    if not isinstance(item, list | tuple) or len(item) < 2:
        raise UserError(
            f"images: items are of type {type(item).__name__}: expected pairs (image, label)"
        )
    image, label = item[0], item[1]
    if not isinstance(image, Tensor):
        raise UserError(
            f"images: items hold a {type(image).__name__}, not a tensor: give the data set"
            " transform=torchvision.transforms.ToTensor()"
        )
    label = as_labels(label)
    if image.dim() == 3 and label.numel() != 1:
        raise UserError(
            f"labels: expected one per image, got {tuple(label.shape)}: give each class its number"
            " (for one-hot labels, label.argmax())"
        )
    return image, label


def _are_images(images: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list holds tensors (C, H, W) of one shape, and nothing else."""
    return all(isinstance(each, Tensor) and each.dim() == 3 for each in images) and (
        len({each.shape for each in images}) == 1
    )
