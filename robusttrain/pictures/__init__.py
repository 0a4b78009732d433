"""Pictures of transfer, as matplotlib figures: ``png(figure)`` for a file, ``add_figure`` for TensorBoard.

They draw what the measures of `robusttrain.evaluation.transfer` found, and compute nothing of their own.
"""

from robusttrain.pictures.canvas import canvas, centred, png, rgb
from robusttrain.pictures.charts import lines
from robusttrain.pictures.heat_map import heat_map
from robusttrain.pictures.perturbations import perturbations
from robusttrain.pictures.planes import boundaries, decision_regions

__all__ = [
    "boundaries",
    "canvas",
    "centred",
    "decision_regions",
    "heat_map",
    "lines",
    "perturbations",
    "png",
    "rgb",
]
