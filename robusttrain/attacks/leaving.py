"""Images leave an attack as soon as their verdict is settled.

An evaluation of a deterministic target asks one question of each image: does some point within the
threat end on a wrong class? Once an attack has asked about such a point, no further step can change
the answer. `Leaving` notes the point, and the model is no longer asked about the image. So every
gradient is spent on images that still stand.

The place where images leave is the one through which every attack asks (`Queried`), so the loops
of the attacks know nothing of it. An attack goes on with the whole batch; an image that has left
gets the answer that settled it, without a derivative. What the attack makes of such an image does
not count, because the evaluation takes the noted point.

Every `EVERY`-th pass is looked at, and there alone the host waits for the device. The streams of a
pass say which images it is about (``Rng.rows``). Passes without such streams (stacked copies, a
source's inner passes) are asked in full and settle nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robusttrain.attacks.answers import misclassified
from robusttrain.attacks.parts.threats import Threat, inside
from robusttrain.core.rng import Rng

#: Passes from one look to the next. A look costs little where nothing is wrong: the host waits.
EVERY = 5
#: How far beyond epsilon rounding may carry a point that still counts as inside.
ROUNDING = 1e-6

Ask = Callable[[Tensor, Rng], Tensor]


class Leaving:
    """Which images of a batch still stand, while one attack runs.

    Args:
        threat: the attack's.
        images: (B, C, H, W), the images as they are.
        labels: (B,), their classes.
        right: the target's float32 verdicts: from points (n, C, H, W) and their places (n,) in the
            batch to (n,) bool on any device.
        spare: whether the model is spared settled images. Otherwise it is asked about every image,
            and points are noted all the same: same points, same verdicts, more passes.

    Attributes:
        settled: (B,) bool, the images whose point is noted.
        points: (B, C, H, W), the noted points, in the images' type; elsewhere the images.
    """

    def __init__(
        self,
        threat: Threat,
        images: Tensor,
        labels: Tensor,
        right: Callable[[Tensor, Tensor], Tensor],
        spare: bool = True,
    ) -> None:
        self.threat, self.images, self.labels = threat, images, labels
        self.right, self.spare = right, spare
        # Inference tensors could not be written to during the attack.
        with torch.inference_mode(False):
            self.settled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            self.points = images.clone()
        self._answers: Tensor | None = None  # (B, K), those that settled; None as long as none did
        self._passes = 0
        # The last pass's rows, and where in that pass the standing images are
        self._rows: Tensor | None = None
        self._where: Tensor | None = None

    def ask(self, ask: Ask, images: Tensor, rng: Rng) -> Tensor:
        """Logits (n, K) of one pass over images (n, C, H, W) whose streams (n,) have rows; ``ask``
        asks the model.
        """
        assert rng.rows is not None
        self._passes += 1
        where = self._standing(rng.rows)
        logits = (
            ask(images, rng) if where is None else self._among(ask, images, rng, rng.rows, where)
        )
        if self._passes % EVERY == 0:
            self._look(images.detach(), rng.rows, logits.detach())
        return logits

    def _standing(self, rows: Tensor) -> Tensor | None:
        """Where in a pass the standing images are; None for everywhere.

        The answer holds until the next image leaves. So a loop over the same images makes the host
        wait once, and not in every step.
        """
        if self._answers is None or not self.spare:
            return None
        if self._rows is not rows:
            self._rows, self._where = rows, (~self.settled[rows]).nonzero().squeeze(1)
        where = self._where
        return None if where is None or len(where) == len(rows) else where

    def _among(self, ask: Ask, images: Tensor, rng: Rng, rows: Tensor, where: Tensor) -> Tensor:
        """Logits (n, K) of a pass of which the model is shown the images ``where`` alone."""
        assert self._answers is not None
        logits = self._answers[rows]
        if len(where):
            streams = rng[where]
            answers = ask(images.index_select(0, where), streams)
            rng.position = max(rng.position, streams.position)
            return logits.to(answers.dtype).index_copy(0, where, answers)
        # Nobody stands: a derivative there is, and it is zero.
        return logits + 0 * images.flatten(1)[:, :1] if images.requires_grad else logits

    def _look(self, images: Tensor, rows: Tensor, logits: Tensor) -> None:
        """Let those images go whose points the target misclassifies, within the threat."""
        wrong = misclassified(logits, self.labels[rows])
        which = (wrong & ~self.settled[rows]).nonzero().squeeze(1)
        if not len(which):
            return
        there = rows[which]
        points, clean = images[which].to(self.images.dtype), self.images[there]
        held = inside(self.threat, points, clean, ROUNDING)
        held &= (points.flatten(1) >= 0).all(dim=1) & (points.flatten(1) <= 1).all(dim=1)
        which, there, points = which[held], there[held], points[held]
        if not len(which):
            return
        fell = ~self.right(points, there).to(images.device)
        which, there, points = which[fell], there[fell], points[fell]
        if not len(which):
            return
        if self._answers is None:
            self._answers = logits.new_zeros(len(self.images), logits.shape[1])
        self._answers[there] = logits[which].to(self._answers.dtype)
        self.points[there] = points
        self.settled.index_fill_(0, there, True)
        self._rows = None
