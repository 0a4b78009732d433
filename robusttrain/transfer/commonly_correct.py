"""Images that several models all classify correctly, on which transfer attacks are measured.

Success on such an image is the attack's doing for every source and target alike. So the success
rates of a transfer matrix share one denominator (liu-2017, section 2.3; wu-2018 and xie-2018,
section 4; xie-2019, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.data import Batch
from robusttrain.data.base import as_float
from robusttrain.evaluation.scoring import verdicts
from robusttrain.evaluation.taking import check_classes


class CommonlyCorrect(NamedTuple):
    """The images that all models classify correctly.

    Attributes:
        indices: (n,) int64, the images' indices in the split, ascending; n is at least 1.
        candidates: number of images that were tried.
        accuracy: by model, the share of the candidates that it classifies correctly.
    """

    indices: Tensor
    candidates: int
    accuracy: dict[str, float]


def commonly_correct(
    models: Mapping[str, nn.Module], batches: Iterable[Batch], num_classes: int, seed: int = 0
) -> CommonlyCorrect:
    """The images that every model classifies correctly, in a float32 forward pass.

    The order of the models does not change the result.

    Args:
        models: by name, images (B, C, H, W) in [0, 1] to logits (B, K); left as they were.
        batches: the candidates, uint8 as a loader gives them (``data.test_dataloader()``, after
            ``limit_test`` for a seeded subset) or float in [0, 1] (``[data.unaugmented("test",
            count)]``).
        num_classes: classes of the data set.
        seed: of the one draw for each image that judges a random model.

    Raises:
        UserError: no model is given, a model (which is named) answers with other classes or cannot
            take the images, or no image is left.
    """
    if not models:
        raise UserError("commonly correct images need at least one model")
    candidates, common_parts = 0, [torch.empty(0, dtype=torch.int64)]
    right = dict.fromkeys(models, 0)
    left = dict.fromkeys(models, 0)  # images that this model and all before it got right
    for batch in batches:
        if not len(batch.labels):
            continue
        images = batch.images if batch.images.is_floating_point() else as_float(batch.images)
        if not candidates:
            for name, model in models.items():
                check_classes(model, images.to(_device(model)), num_classes, f"model {name}")
        candidates += len(images)
        common = torch.ones(len(images), dtype=torch.bool)
        for name, model in models.items():
            shown, labels, indices = (
                part.to(_device(model)) for part in (images, batch.labels, batch.indices)
            )
            rng = Rng.for_images(seed, indices).fold("commonly correct")
            correct = verdicts(model, shown, labels, rng, draws=1).squeeze(1).cpu()
            common &= correct
            right[name] += int(correct.sum())
            left[name] += int(common.sum())
        common_parts.append(batch.indices[common])
    chosen = torch.cat(common_parts).sort().values
    if not len(chosen):
        steps = ", ".join(f"{name} leaves {count}" for name, count in left.items())
        raise UserError(
            f"no image of {candidates} is classified correctly by all models ({steps}): give more"
            " images, or other models (weights, normalisation and the order of the classes must be"
            " those of the data set)"
        )
    accuracy = {name: count / candidates for name, count in right.items()}
    return CommonlyCorrect(chosen, candidates, accuracy)


def _device(model: nn.Module) -> torch.device:
    """The device of the model's weights; the CPU for a model without weights."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
