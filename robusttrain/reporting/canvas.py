"""What all pictures share: figures without a screen, colours that everybody can tell apart, images
for matplotlib.
"""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

#: Okabe & Ito 2008: chosen to be told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
RIGHT, WRONG = "#0072B2", "#D55E00"


class _Literal(Figure):
    """A figure whose texts are shown as they are. Names of models, attacks and classes come from
    files, and matplotlib takes what stands between two dollar signs for a formula, or raises.
    """

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            said = text.get_text()
            if text.get_wrap():  # its lines are measured as formulas whatever it says of itself
                text.set_text(re.sub(r"(?<!\\)\$", r"\\$", said))
            else:  # labels of a logarithmic axis are matplotlib's own formulas
                text.set_parse_math("\\mathdefault" in said)
        super().draw(renderer)


def canvas(width: float, height: float, dpi: int = 100) -> Figure:
    """An empty figure, in inches and dots an inch; drawn in memory, never on a screen."""
    figure = _Literal(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a PNG file's bytes. TensorBoard takes the figure itself: ``add_figure``."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def rgb(image: Tensor) -> Any:
    """(C, H, W) in [0, 1] as matplotlib wants it, (H, W, 3); grey images have their channel
    repeated.
    """
    shown = image.detach().float().cpu().clamp(0, 1)
    return (shown.expand(3, -1, -1) if len(shown) == 1 else shown).permute(1, 2, 0).numpy()


def centred(change: Tensor) -> Tensor:
    """Changes (B, C, H, W) as grey plus or minus: each image's largest change reaches black or
    white.
    """
    largest = change.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return 0.5 + 0.5 * change / largest


def show(axes: Axes, image: Tensor) -> None:
    """An image (C, H, W) without ticks."""
    axes.imshow(rgb(image))
    axes.set_xticks([])
    axes.set_yticks([])
