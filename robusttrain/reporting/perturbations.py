"""Adversarial images beside their amplified perturbations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from robusttrain.reporting.canvas import RIGHT, WRONG, canvas, centred, show
from robusttrain.transfer.distances import linf, rmsd


def perturbations(
    images: Tensor,
    adversarial: Mapping[str, Tensor],
    labels: Sequence[str],
    said: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """One row for each image: the image, and each attack's adversarial image with its perturbation.

    A perturbation is shown on grey, amplified until its largest change is black or white; the
    factor, the RMSD and the largest change (in units of 1/255) stand under it.

    Args:
        images: (n, C, H, W), pixel values in [0, 1].
        adversarial: attack to (n, C, H, W).
        labels: names of the true classes.
        said: attack to names of what the target answers, written under the adversarial images.
    """
    columns = 1 + 2 * len(adversarial)
    figure = canvas(1.9 * columns + 0.3, 2.1 * len(images) + 0.3)
    panels = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        show(panels[row, 0], image)
        panels[row, 0].set_xlabel(labels[row], fontsize=8)
    panels[0, 0].set_title("image", fontsize=9)
    for at, (attack, changed) in enumerate(adversarial.items()):
        left, beside = panels[:, 1 + 2 * at], panels[:, 2 + 2 * at]
        left[0].set_title(attack, fontsize=9)
        beside[0].set_title("its perturbation", fontsize=9)
        change = changed - images
        amplified = centred(change)
        far, mean = linf(changed, images).tolist(), rmsd(changed, images).tolist()
        for row in range(len(images)):
            show(left[row], changed[row])
            show(beside[row], amplified[row])
            factor = f"x {0.5 / far[row]:.1f}" if far[row] else "none"
            caption = f"{factor}; /255: RMSD {255 * mean[row]:.1f}, max {255 * far[row]:.1f}"
            beside[row].set_xlabel(caption, fontsize=7)
            if said is not None:
                right = said[attack][row] == labels[row]
                mark = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
                left[row].set_xlabel(
                    f"{mark} {said[attack][row]}", fontsize=8, color=RIGHT if right else WRONG
                )
    return figure
