"""Adversarial images as eight-bit files, and what the files leave of an attack.

Attacks move images in float32. A file holds 256 levels a channel, and rounding to the nearest level
may leave the ball or undo the attack. So images are rounded inside the ball, written, read back,
and judged by the model once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from robusttrain.attacks import Threat
from robusttrain.core.errors import UserError
from robusttrain.core.telling import Say
from robusttrain.data import ImageData
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scoring import wilson
from robusttrain.storage.locks import alone

#: Pillow's names of pictures by their number of channels.
MODES = {1: "L", 3: "RGB"}
LEVELS = 255


def eight_bit(adversarial: Tensor, images: Tensor, threat: Threat) -> Tensor:
    """Levels (B, C, H, W) uint8 near ``adversarial`` and inside the ball around ``images``, if the
    ball holds any.

    Each pixel takes the nearest level. If that level lies outside the ball, the pixel takes the
    next level towards its clean value, which moves the pixel less than the attack did. So the
    levels stay in every ball around a clean image of whole levels.

    Args:
        adversarial, images: (B, C, H, W), pixel values in [0, 1].
        threat: the ball.
    """
    levels = (adversarial * LEVELS).round()
    inside = threat.project(levels / LEVELS, images)
    # Half a thousandth of a level is rounding of the projection, and no step out of the ball.
    left = (inside * LEVELS - levels).abs() > 5e-4
    towards = torch.where(
        adversarial > images,
        (adversarial * LEVELS + 5e-4).floor(),
        (adversarial * LEVELS - 5e-4).ceil(),
    )
    return torch.where(left, towards, levels).clamp(0, LEVELS).to(torch.uint8)


def write_pictures(levels: Tensor, indices: Tensor, folder: Path) -> Tensor:
    """Write one PNG for each image, named by its index in the data set, and read all of them back.

    Args:
        levels: (B, C, H, W) uint8, C being 1 or 3.
        indices: (B,) int64.
        folder: made as needed; existing files are replaced.

    Returns:
        (B, C, H, W) float32 in [0, 1], as the files hold them.

    Raises:
        UserError: a file cannot be written.
    """
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each, index in zip(levels, indices.tolist(), strict=True):
            path = folder / f"{index:06d}.png"
            pixels = each.permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(
                pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, MODES[len(each)]
            ).save(path)
            with Image.open(path) as picture:
                read = numpy.array(picture)
            pictures.append(torch.from_numpy(read.reshape(pixels.shape)).permute(2, 0, 1))
    except OSError as error:
        raise UserError(
            f"--export png: {folder}: {error.strerror or error}: make room and give the same"
            " command again"
        ) from error
    return torch.stack(pictures).float() / LEVELS


def check_export(wanted: str | None, channels: int) -> None:
    """Raise UserError unless images with so many channels can be exported as ``wanted``."""
    if wanted not in (None, "png"):
        raise UserError(f"--export {wanted}: must be png")
    if wanted and channels not in MODES:
        raise UserError(
            f"--export png: a PNG has 1 or 3 channels, these images have {channels}: leave it out"
        )


def export(
    engine: Engine,
    data: ImageData,
    records: Records,
    folder: Path,
    batch: int,
    device: torch.device,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """Write every attack's images, read the files back, and judge them on the draws that scored the
    images before. Of several processes that share the folder one after another does, or one would
    read what another has half written.

    Args:
        engine: the engine that made ``records``, with ``keep_images``.
        data: where the clean images come from.
        records: of all images.
        folder: gets ``ATTACK/INDEX.png``.
        batch: images at a time.
        device: where the engine's models are.
        say: takes a line, if this process has to wait.

    Returns:
        By attack: the accuracy on the files, how many images it is of (`Engine.judged`), the images
        whose verdicts changed, the images that no levels keep inside the ball (clean pixels between
        two levels, and a radius below half a level), and pictures in the folder that are of an
        earlier run.
    """
    with alone(folder, "the eight-bit images", say):
        figures = {}
        for name, scenario in engine.scenarios.items():
            changed, outside, scores = 0, 0, []
            given = records.of(name).judged(engine.survivors).nonzero().squeeze(1)
            for part in given.split(batch) if len(given) else ():
                indices = records.index[part]
                clean = data.test_images(indices).images
                returned = records.of(name).images
                assert returned is not None  # the engine was told to keep them
                levels = eight_bit(returned[part], clean, scenario.attack.threat)
                read = write_pictures(levels, indices, folder / name)
                outside += int(
                    (
                        scenario.attack.threat.distance(read, clean)
                        > scenario.attack.threat.epsilon + 1e-6
                    ).sum()
                )
                score = engine.score(
                    read.to(device), records.label[part].to(device), indices.to(device)
                )
                changed += int((score != records.of(name).score[part]).any(dim=1).sum())
                scores.append(score.double().mean(dim=1))
            written = {f"{index:06d}.png" for index in records.index[given].tolist()}
            there = {path.name for path in (folder / name).glob("[0-9]*.png")}
            mean = torch.cat(scores).mean().item() if scores else None
            figures[name] = {
                "robust_accuracy": None if mean is None else round(mean, 6),
                "ci95": None
                if mean is None
                else [round(end, 6) for end in wilson(mean, len(given))],
                "images": len(given),
                "verdicts_changed": changed,
                "outside_threat": outside,
                "earlier_files": len(there - written),
            }
        return figures


def export_line(figures: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """One line for the terminal."""
    rows = [
        f"{name} was given no image"
        if row["robust_accuracy"] is None
        else f"{name} {100 * row['robust_accuracy']:.1f} % of {row['images']}"
        f" images, {row['verdicts_changed']} with another verdict"
        + (f", {row['outside_threat']} outside the ball" if row["outside_threat"] else "")
        + (f", beside {row['earlier_files']} of an earlier run" if row["earlier_files"] else "")
        for name, row in figures.items()
    ]
    return f"eight-bit images in {folder}: " + "; ".join(rows)
