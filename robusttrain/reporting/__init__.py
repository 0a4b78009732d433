"""Reports of evaluations (``report``), evaluations compared (``comparison``), and pictures of
transfer, as matplotlib figures: ``png(figure)`` for a file, ``add_figure`` for TensorBoard.

They draw what the measures of `robusttrain.transfer` found, and compute nothing of their own.
"""

from robusttrain.reporting.canvas import canvas, centred, png, rgb
from robusttrain.reporting.charts import bars, lines
from robusttrain.reporting.heat_map import heat_map
from robusttrain.reporting.perturbations import perturbations
from robusttrain.reporting.planes import boundaries, decision_regions

__all__ = [
    "bars",
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
