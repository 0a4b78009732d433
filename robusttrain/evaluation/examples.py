"""A few of the images that fell, for readers: chosen by the seed, with what the target answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.evaluation.scoring import top_classes
from robusttrain.storage.files import parsed
from robusttrain.storage.weights import read_own, save_tensors

#: How many are shown.
MOST = 24


@dataclass(frozen=True)
class Examples:
    """Images that were right, and what the attack that is worst for them made of each.

    Args:
        index: (n,) int64, each image's place in its data set.
        label: (n,) int64, its true class.
        attack: (n,) int64, number of the attack, in the order of the evaluation.
        distance: (n,) float, in the threat's norm.
        images: (n, C, H, W) uint8, in levels of 1/255.
        change: (n, C, H, W) float16, what was added, in pixel values of [0, 1].
        before: (n,) int64, what the target answers to the image in most of its draws.
        after: (n,) int64, the same of the adversarial image.
    """

    index: Tensor
    label: Tensor
    attack: Tensor
    distance: Tensor
    images: Tensor
    change: Tensor
    before: Tensor
    after: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def save(self, path: str | os.PathLike[str], attacks: Sequence[str]) -> None:
        """Write them as safetensors, with the attacks' names."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        save_tensors(columns, path, {"attacks": json.dumps([*attacks])})

    @staticmethod
    def read(path: str | os.PathLike[str]) -> tuple[Examples, list[str]]:
        """What `save` wrote, and the attacks' names.

        Raises:
            UserError: no such file, or another one.
        """
        columns, metadata = read_own(path)
        try:
            names = parsed(metadata["attacks"])
            examples = Examples(**columns)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{Path(path)}: holds no examples of an evaluation") from error
        count = examples.index.shape
        alike = all(
            values.shape == count
            for name, values in columns.items()
            if name not in ("images", "change")
        )
        shape = examples.images.shape
        pictures = shape == examples.change.shape and len(shape) == 4 and 0 not in shape
        pictures = pictures and shape[:1] == count
        if not (isinstance(names, list) and len(count) == 1 and alike and pictures):
            raise UserError(f"{Path(path)}: holds no examples of an evaluation")
        return examples, [str(name) for name in names]


def worst_attack(records: Records) -> tuple[Tensor, Tensor]:
    """The attack that is worst for each image on the draws that select, (n,) int64, and whether the
    image fell to it, (n,) bool: right before, and then wrong in most of the draws that score.
    """
    select = torch.stack([records.of(name).chosen_by for name in records.attacks])
    score = torch.stack([records.of(name).right for name in records.attacks])
    worst = select.argmin(dim=0)
    left = score.gather(0, worst[None]).squeeze(0)
    right = (records.of(CLEAN).chosen_by > 0.5) & (records.of(CLEAN).right > 0.5)
    return worst, right & (left < 0.5)


@dataclass(frozen=True)
class Fallen:
    """What is gathered of each batch: the columns of `Examples` but for the answers.

    Of all batches and processes together those images stay whose streams have the lowest keys: a
    choice of the seed, whatever the order.
    """

    seed: int
    index: Tensor
    label: Tensor
    attack: Tensor
    distance: Tensor
    images: Tensor
    adversarial: Tensor

    @staticmethod
    def joined(parts: Sequence[Fallen]) -> Fallen | None:
        """The `MOST` first ones of several parts, each image once; None where there are none."""
        parts = [part for part in parts if len(part.index)]
        if not parts:
            return None
        names = [each.name for each in fields(Fallen) if each.name != "seed"]
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        seed, seen, chosen = parts[0].seed, set[int](), list[int]()
        for place in lottery(seed, columns["index"]).argsort().tolist():
            image = int(columns["index"][place])
            if image not in seen and len(chosen) < MOST:
                chosen.append(place)
                seen.add(image)
        return Fallen(seed, **{name: values[chosen] for name, values in columns.items()})

    def answered(self, model: nn.Module, draws: int, device: torch.device) -> Examples:
        """With what the target answers, on the draws that score."""
        rng = Rng.for_images(self.seed, self.index.to(device)).fold("score")
        answers = [
            top_classes(model, images.to(device), rng, draws, top=1)[..., 0].mode(dim=1).values
            for images in (self.images, self.adversarial)
        ]
        levels = (255 * self.images).round().to(torch.uint8)
        change = (self.adversarial - self.images).to(torch.float16)
        return Examples(
            self.index, self.label, self.attack, self.distance, levels, change, *answers
        )


def lottery(seed: int, index: Tensor) -> Tensor:
    """(n,) int64: the lowest keys are drawn first."""
    return Rng.for_images(seed, index).fold("examples").keys


def fallen(
    records: Records,
    seed: int,
    images: Tensor,
    adversarial: Callable[[str], Tensor | None],
    before: Fallen | None = None,
) -> Fallen | None:
    """Of one batch, the images that fell, together with those of batches before; None where there
    are none.

    Args:
        records: of the batch.
        seed: of the evaluation.
        images: (B, C, H, W), in [0, 1].
        adversarial: what an attack made of the batch, (B, C, H, W), by its name; None where that
            was not kept. Asked only about attacks of which an example is shown.
        before: of the batches before.
    """
    if not records.attacks:
        return before
    worst, fell = worst_attack(records)
    which = fell.nonzero().squeeze(1)
    which = which[lottery(seed, records.index[which]).argsort()][:MOST]
    if before is not None and len(before.index) == MOST:
        drawn = lottery(seed, records.index[which]) < lottery(seed, before.index).max()
        which = which[drawn]
    parts = [] if before is None else [before]
    for number, name in enumerate(records.attacks):
        here = which[worst[which] == number]
        made = adversarial(name) if len(here) else None
        if made is None:
            continue
        rows = records.of(name)[here]
        parts.append(
            Fallen(
                seed,
                rows.index,
                rows.label,
                worst[here],
                rows.distance.float(),
                images[here.to(images.device)].float().cpu(),
                made[here.to(made.device)].float().cpu(),
            )
        )
    return Fallen.joined(parts)
