"""Certificates beside an evaluation: certified accuracy over the radius, what attacks leave of the
same smoothed classifier, and whether an attack broke a certificate.

Both are about the smoothed classifier, and bound its robust accuracy: certificates from below, and
attacks from above. An image counts as broken where the smoothed classifier's answer to an
adversarial image is another class for sure (`certify.decided`); its Euclidean distance from the
clean image says at which radii.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robusttrain.attacks.parts.threats import L2
from robusttrain.core.errors import UserError
from robusttrain.core.processor import seconds_of, telling_size
from robusttrain.core.rng import Rng
from robusttrain.evaluation.certify import ABSTAIN, Smoothed, decided, streams
from robusttrain.evaluation.engine import Engine, Entry, EntryStore
from robusttrain.evaluation.records import once_each
from robusttrain.evaluation.results import alike, figure
from robusttrain.storage.weights import read_own, save_tensors

#: Share of a radius that rounding may add to the length of an attack's change.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Certified:
    """A table with a row for each image, all on the CPU.

    Args:
        index: (n,) int64, each image's place in its data set.
        label: (n,) int64, its true class.
        answer, radius, predicted: of its certificate, as `certify.Certificates` has them.
        broken_at: (n,) float64, the Euclidean distance of the nearest image that the smoothed
            classifier gets wrong for sure; 0 where it is wrong without an attack, infinite where no
            attack succeeded.
        broken_by: (n,) int64, number of the attack, in the order of the evaluation; -1 for none.
        undecided_at: (n,) float64, the same of images to which it abstains.
        farthest: (n,) float64, the distance of the farthest adversarial image.
        judged: (n,) int64, adversarial images that were judged.
    """

    index: Tensor
    label: Tensor
    answer: Tensor
    radius: Tensor
    predicted: Tensor
    broken_at: Tensor
    broken_by: Tensor
    undecided_at: Tensor
    farthest: Tensor
    judged: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def right(self) -> Tensor:
        """(n,) bool: images that are certified in their true class."""
        return self.answer == self.label

    @property
    def violated(self) -> Tensor:
        """(n,) bool: certified, and broken nearer than the radius."""
        return self.right & (self.broken_at < self.radius)

    def point(self, at: float, reach: float) -> dict[str, Any]:
        """What results.json says of a Euclidean radius; of attacks as far as they ``reach``."""
        # One limit for both, so that neither side gains by rounding.
        limit = at * (1 + ROUNDING)
        left = self.broken_at > limit
        attacked = figure(left, "accuracy") | {
            "undecided": int((left & (self.undecided_at <= limit)).sum())
        }
        return {
            "radius": at,
            "certified": figure(self.right & (self.radius > limit), "accuracy"),
            # The grid is rounded, maybe upwards.
            "attacked": attacked if at <= reach + 1e-9 or at == 0 else None,
        }

    def gives(self, stated: Mapping[str, Any]) -> bool:
        """Whether the figures are those that results.json states."""
        found = {
            "abstained": int((self.answer == ABSTAIN).sum()),
            "judged": int(self.judged.sum()),
            "answer": self.answer.tolist(),
            "radius": self.radius.tolist(),
        }
        points = [
            # How far attacks reached is rounded there.
            self.point(each["radius"], torch.inf if each["attacked"] else 0.0)
            for each in stated["points"]
        ]
        broken = [each["index"] for each in stated["violations"]]
        return (
            alike(found, {key: stated[key] for key in found})
            and alike(points, [{"attacked": None} | each for each in stated["points"]])
            and self.index[self.violated].tolist() == broken
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as safetensors."""
        save_tensors({each.name: getattr(self, each.name) for each in fields(self)}, path)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Certified:
        """The table that `save` wrote.

        Raises:
            UserError: there is no such file, or it holds no such table.
        """
        columns, _ = read_own(path)
        if columns.keys() != {each.name for each in fields(Certified)}:
            raise UserError(f"{Path(path)}: holds no certificates of an evaluation")
        return Certified(**columns)

    @staticmethod
    def merged(parts: Sequence[Certified]) -> Certified:
        """The rows of all batches of all processes, sorted by image, each image once."""
        names = [each.name for each in fields(Certified)]
        whole = Certified(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
        once = once_each(whole.index)
        return Certified(*(getattr(whole, name)[once] for name in names))


class Certification:
    """Certifies the images of an evaluation, and judges its adversarial images on the smoothed
    classifier.

    Args:
        engine: of the evaluation.
        smoothed: behind its target.
        radii: at which the attacks run, besides that of the evaluation itself.
    """

    def __init__(self, engine: Engine, smoothed: Smoothed, radii: Sequence[float] = ()) -> None:
        self.engine, self.smoothed = engine, smoothed
        threats = [each.attack.threat for each in engine.scenarios.values()]
        self.norm = threats[0].norm if threats else None
        self.radii = sorted({*radii, *(threat.epsilon for threat in threats)})

    @property
    def prefix(self) -> str:
        """Of the names under which the journal keeps draws."""
        return f"certify-{self.smoothed.choosing}-{self.smoothed.draws}"

    @property
    def passes(self) -> tuple[int, int]:
        """Forward passes that an image costs: its certificate, and each of its adversarial
        images.
        """
        return self.smoothed.choosing + self.smoothed.draws, self.smoothed.draws

    def seconds(self, images: Tensor) -> float:
        """Seconds per pass and image, of a few passes."""
        images = images[: telling_size(len(images), images.device)].float()
        rng = Rng.for_images(0, torch.arange(len(images), device=images.device)).fold("measure")
        spent = seconds_of(lambda: self.smoothed.chosen(images, rng), images.device, 1)
        return spent / max(1, len(images) * self.smoothed.choosing)

    def certify(self, images: Tensor, labels: Tensor, indices: Tensor) -> Certified:
        """Certificates of a batch, before any attack; arguments as for `Engine.run`."""
        rng = streams(Rng.for_images(self.engine.seed, indices))

        def draws() -> Entry:
            return {
                "chosen": self.smoothed.chosen(images, rng),
                "counts": self.smoothed.counts(images, rng.fold("bound")),
            }

        entry = _once(self.engine.journal, self.prefix, images, labels, indices, draws)
        self.engine.count(len(images) * self.passes[0])
        certificates = self.smoothed.certificates(entry["chosen"], entry["counts"])
        none = torch.full((len(images),), torch.inf, dtype=torch.float64)
        label, predicted = labels.cpu(), certificates.predicted
        wrong = (predicted != label) & (predicted != ABSTAIN)
        return Certified(
            indices.cpu(),
            label,
            certificates.answer,
            certificates.radius,
            predicted,
            none.where(~wrong, 0.0),
            torch.full_like(label, -1),
            none.where(predicted != ABSTAIN, 0.0),
            torch.zeros_like(none),
            torch.zeros_like(label),
        )

    def judge(
        self, certified: Certified, here: Tensor, images: Tensor, made: Tensor, stage: str, by: int
    ) -> None:
        """Judge adversarial images, and note in the table what they broke.

        What is nearer than everything before is judged, as far as the image is not wrong already.

        Args:
            certified: of the batch.
            here: (m,) int64, rows of the batch that were attacked.
            images: (m, C, H, W), the clean ones, in [0, 1].
            made: (m, C, H, W), what the attack returned.
            stage: the attack's name, at its radius.
            by: its number in the evaluation.
        """
        distance = L2().distance(made.cpu().double(), images.cpu().double())
        certified.farthest[here] = certified.farthest[here].maximum(distance)
        nearer = (distance > 0) & (distance < certified.broken_at[here])
        which = nearer.nonzero().squeeze(1)
        if not len(which):
            return
        rows, chosen = here[which], made[which.to(made.device)]
        index, label = certified.index[rows], certified.label[rows]
        rng = streams(Rng.for_images(self.engine.seed, index.to(made.device))).fold("predict")
        entry = _once(
            self.engine.journal,
            f"{self.prefix}={stage}",
            chosen,
            label,
            index,
            lambda: {"counts": self.smoothed.counts(chosen, rng)},
        )
        self.engine.count(len(which) * self.passes[1])
        certified.judged[rows] += 1
        answers = decided(entry["counts"], self.smoothed.alpha)
        for column, hit in (
            (certified.broken_at, (answers != label) & (answers != ABSTAIN)),
            (certified.undecided_at, answers == ABSTAIN),
        ):
            column[rows] = column[rows].minimum(distance[which].where(hit, torch.inf))
            if column is certified.broken_at:
                certified.broken_by[rows[hit]] = by

    def content(self, certified: Certified) -> dict[str, Any]:
        """What results.json says, of all images."""
        smoothed, names = self.smoothed, list(self.engine.scenarios)
        reach = 0.0
        if len(certified):
            farthest = float(certified.farthest.max())
            reach = max(self.radii, default=0.0) if self.norm == "l2" else farthest
        return {
            "sigma": smoothed.sigma,
            "draws": smoothed.draws,
            "choosing": smoothed.choosing,
            "alpha": smoothed.alpha,
            "largest_radius": round(smoothed.largest, 6),
            "attacks": {"norm": self.norm, "radius": round(reach, 6)},
            "abstained": int((certified.answer == ABSTAIN).sum()),
            "judged": int(certified.judged.sum()),
            "points": [certified.point(each, reach) for each in self._grid()],
            "violations": [
                {
                    "index": int(certified.index[row]),
                    "radius": round(float(certified.radius[row]), 6),
                    "distance": round(float(certified.broken_at[row]), 6),
                    "attack": names[int(certified.broken_by[row])]
                    if certified.broken_by[row] >= 0
                    else None,
                }
                for row in certified.violated.nonzero().squeeze(1).tolist()
            ],
            "answer": certified.answer.tolist(),
            "radius": [round(value, 6) for value in certified.radius.tolist()],
        }

    def _grid(self) -> list[float]:
        """Quarters of sigma as far as a certificate can reach, and the radii of the attacks."""
        step = self.smoothed.sigma / 4
        regular = [step * number for number in range(int(self.smoothed.largest / step) + 1)]
        own = self.radii if self.norm == "l2" else []
        # Attacks without a bound have a radius that would hide everything else.
        near = [each for each in own if each <= 4 * self.smoothed.largest]
        return sorted({*(round(each, 9) for each in [*regular, *near])})


def _once(
    journal: EntryStore | None,
    stage: str,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    make: Callable[[], Entry],
) -> Entry:
    """A journal's entry, made where there is none."""
    entry = journal.get(stage, images, labels, indices) if journal else None
    if entry is None:
        entry = make()
        if journal:
            journal.put(stage, images, labels, indices, entry)
    return entry
