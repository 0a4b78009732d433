"""Measurements on g itself; ``data`` and ``defense`` are nodes, as `Scale.transformation` has
them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robusttrain import Rng
from robusttrain.attacks.algorithms.mean_start import mean_transform
from robusttrain.config.build import build
from robusttrain.data import ImageData
from robusttrain.defenses import AdversarialTransform
from robusttrain.evaluation.plan import Node


def mean_distance(data: Node, defense: Node, count: int, draws: int) -> dict[str, Any]:
    """How far E[g(x)] is from x in Linf, for each image; with pictures of x and E[g(x)] of the
    first three images.
    """
    g, images, rng = transformation(data, defense, count)
    mean = mean_transform(g.transform, images, rng, draws)
    distances = (images - mean).abs().amax(dim=(1, 2, 3))
    shown = {"x": images[:3], "mean": mean[:3]}
    return {
        "images": count,
        "draws": draws,
        "mean_distance": round(distances.mean().item(), 6),
        "distances": [round(distance, 6) for distance in distances.tolist()],
        "pictures": {
            name: (pixels * 1000).round().int().tolist() for name, pixels in shown.items()
        },
    }


def finite_differences(data: Node, defense: Node, count: int, image: int) -> dict[str, Any]:
    """Equation 4 for one image and one frozen draw of g, over ``count`` values of h from 1e-7 to
    1e-1.

    Pixel j is the middle of the image; pixel i is j itself, its right neighbour, or the middle of
    the upper half.
    """
    g, images, rng = transformation(data, defense, image + 1)
    x, stream = images[image], rng[image : image + 1]
    middle, quarter = x.shape[-1] // 2, x.shape[-1] // 4
    places = {"same": (middle, middle), "neighbour": (middle, middle + 1), "far": (quarter, middle)}
    rows: dict[str, list[float]] = {name: [] for name in places}
    widths = torch.logspace(-7, -1, count, dtype=torch.float64).tolist()
    for h in widths:
        moved = x.repeat(2, 1, 1, 1)
        moved[0, 0, middle, middle] += h
        moved[1, 0, middle, middle] -= h
        # In float32 a step of 1e-7 is rounded: divide by the step that was made.
        made = (moved[0] - moved[1]).double().sum().item()
        # One draw: both images get the random start of the same stream.
        after = g.transform(moved, Rng(stream.keys.repeat(2))).double()
        for name, (row, column) in places.items():
            difference = (after[0, 0, row, column] - after[1, 0, row, column]).item()
            rows[name].append(difference / made if made else 0.0)
    return {"image": image, "h": widths, "estimates": rows}


def transformation(
    data: Node, defense: Node, count: int
) -> tuple[AdversarialTransform, Tensor, Rng]:
    """g, ``count`` test images (B, C, H, W) chosen by seed 0, and their streams."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = {**data["init_args"], "batch_size": count}
    images: ImageData = build({**data, "init_args": arguments}, "data", kind=ImageData)
    g: AdversarialTransform = build(defense, "defense", kind=AdversarialTransform)
    images.limit_test(count, seed=0)
    images.setup("test")
    batch = images.on_after_batch_transfer(next(iter(images.test_dataloader())), 0)
    rng = Rng.for_images(0, batch.indices.to(device)).fold("studies")
    return g.to(device), batch.images.to(device), rng
