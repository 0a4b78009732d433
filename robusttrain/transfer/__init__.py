"""Measures of transfer: pure functions from answers, images and models to figures with intervals.

- adversarial images, crafted once on each source and stored:  `Crafting`
- the targets' answers, and the images that count:  `answers`, `every_model_right`, `target_right`
- which images transfer:  `success_matrix`, `matching_matrix`, `same_mistake`, `challenge_score`
- how far images move:    `rmsd`, `l2`, `linf`, `minimal_distortion`, `cumulative`
- which images survive a transformation:  `destruction_rate`, `destruction_curve`; `Rotation`,
  `GaussianNoise`, `GaussianBlur`, `JPEG`
- why images transfer:    `angle_matrix` of `gradients`, `regions` in a plane

Every figure is an `Estimate`: value, 95 % interval, and number of images. A table of estimates is a
`Matrix`, as JSON, Markdown or for the terminal. `robusttrain.reporting` draws pictures.
"""

from robusttrain.transfer.crafting import Crafting, Model, Outcome, Planned
from robusttrain.transfer.destruction import destruction_curve, destruction_rate
from robusttrain.transfer.distances import l2, linf, rmsd
from robusttrain.transfer.estimates import Estimate, Matrix
from robusttrain.transfer.gradient_angles import angle_matrix, cosines, gradients
from robusttrain.transfer.minimal_distortion import cumulative, least_for, minimal_distortion
from robusttrain.transfer.planes import Regions, orthogonal, regions, rejection, unit
from robusttrain.transfer.predictions import (
    Denominator,
    answers,
    every_model_right,
    right,
    target_right,
    within_top,
)
from robusttrain.transfer.success import (
    challenge_score,
    matching_matrix,
    same_mistake,
    success_matrix,
)
from robusttrain.transfer.transformations import (
    JPEG,
    GaussianBlur,
    GaussianNoise,
    Rotation,
    Transformation,
)

__all__ = [
    "JPEG",
    "Crafting",
    "Denominator",
    "Estimate",
    "GaussianBlur",
    "GaussianNoise",
    "Matrix",
    "Model",
    "Outcome",
    "Planned",
    "Regions",
    "Rotation",
    "Transformation",
    "angle_matrix",
    "answers",
    "challenge_score",
    "cosines",
    "cumulative",
    "destruction_curve",
    "destruction_rate",
    "every_model_right",
    "gradients",
    "l2",
    "least_for",
    "linf",
    "matching_matrix",
    "minimal_distortion",
    "orthogonal",
    "regions",
    "rejection",
    "right",
    "rmsd",
    "same_mistake",
    "success_matrix",
    "target_right",
    "unit",
    "within_top",
]
