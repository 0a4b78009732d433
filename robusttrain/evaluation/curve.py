"""Accuracy over the radius of the threat, or over the effort of the attacks: nested, so that the
points of a curve share their work.

What an attack records within a small radius lies within every larger one. So an image that fell at
one point of the curve has fallen at all that follow: it is not attacked again there, and a figure
can only be lower than those before it. The same holds for effort: whoever may take twice the steps
may also stop halfway.

On a random target, draws that select choose between the attacks so far, and others score: there a
figure can rise by the luck of the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robusttrain.attacks import Attack, Cost
from robusttrain.core.errors import UserError
from robusttrain.evaluation.engine import Engine, Entry, EntryStore
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.scoring import wilson


@dataclass(frozen=True)
class Rung:
    """One point of a curve.

    Args:
        kind: "epsilon" or "effort".
        value: the radius, in pixel values of [0, 1], or the share of the attacks' steps or queries.
    """

    kind: str
    value: float

    @property
    def name(self) -> str:
        return f"{self.kind}={self.value!r}"

    def of(self, attack: Attack) -> Attack | None:
        """The attack's version here; None where it has none."""
        if self.kind == "epsilon":
            return attack.at_radius(self.value)
        return attack.scaled(self.value)


@dataclass(frozen=True)
class Under:
    """Keeps entries under names of their own, so that those of several rungs lie side by side."""

    journal: EntryStore
    rung: Rung

    def get(self, stage: str, images: Tensor, labels: Tensor, indices: Tensor) -> Entry | None:
        return self.journal.get(f"{self.rung.name}={stage}", images, labels, indices)

    def put(
        self, stage: str, images: Tensor, labels: Tensor, indices: Tensor, entry: Entry
    ) -> None:
        self.journal.put(f"{self.rung.name}={stage}", images, labels, indices, entry)


class Curve:
    """The points of one curve over the attacks of an engine, which have their own point among them.

    Args:
        engine: of the evaluation.
        kind: "epsilon" or "effort".
        values: of the further points, in any order; a radius of 0 is no attack.

    Raises:
        UserError: attacks that have no other versions.
    """

    def __init__(self, engine: Engine, kind: str, values: Sequence[float]) -> None:
        self.engine, self.kind = engine, kind
        threats = [each.attack.threat.epsilon for each in engine.scenarios.values()]
        #: Where the evaluation itself stands.
        self.own = (threats[0] if threats else 0.0) if kind == "epsilon" else 1.0
        self.rungs = [Rung(kind, value) for value in sorted({*values, self.own})]
        for rung in self.rungs:
            versions = self._versions(rung)
            if rung.value and rung.value != self.own and not versions:
                raise UserError(f"{rung.kind} {rung.value:g}: no attack has a version of it")

    def _versions(self, rung: Rung) -> list[Attack]:
        records = [rung.of(each.attack) for each in self.engine.scenarios.values()]
        return [attack for attack in records if attack is not None]

    def cost(self, rung: Rung) -> Cost:
        """What an image costs at a point, at most."""
        own = [each.attack for each in self.engine.scenarios.values()]
        costs = [each.cost() for each in (own if rung.value == self.own else self._versions(rung))]
        if not rung.value:
            return Cost(0, 0)
        return Cost(sum(each.gradients for each in costs), sum(each.queries for each in costs))

    @property
    def further(self) -> list[Rung]:
        """The points that the evaluation itself does not reach."""
        return [rung for rung in self.rungs if rung.value not in (0, self.own)]

    def run(self, images: Tensor, labels: Tensor, indices: Tensor, whole: Records) -> Records:
        """Verdicts at every point, a row for each image, of the attack that is worst for it so far.

        Args:
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) int64.
            indices: (B,) int64.
            whole: what the evaluation itself records for them.
        """
        rows, clean = {CLEAN: whole.of(CLEAN)}, whole.of(CLEAN)
        so_far = replace(clean, images=None, broken=None)
        left = ~self._broken(clean)
        for rung in self.rungs:
            here = torch.arange(len(left)) if rung.value == self.own else left.nonzero().squeeze(1)
            if not rung.value:
                records = None
            elif rung.value == self.own:
                records = whole
            elif len(here):
                journal = Under(self.engine.journal, rung) if self.engine.journal else None
                chosen = here.to(images.device)
                records, _ = self.engine.varied(rung.of, journal).run(
                    images[chosen], labels[chosen], indices[chosen]
                )
            else:
                records = None
            so_far = _spent_nothing(so_far)
            if records is not None:
                so_far = _worse(so_far, here, records)
                for name in records.attacks:
                    left[here[self._broken(records.of(name))]] = False
            rows[rung.name] = so_far
        return Records(rows)

    def _broken(self, rows: Rows) -> Tensor:
        """(n,) bool: images that fell for good. Of a random target only the engine knows that: a
        few draws that are wrong may be luck.
        """
        assert rows.broken is not None  # the engine says so of every stage
        return rows.broken if self.engine.random else ~rows.select.any(dim=1)

    def points(self, records: Records) -> list[dict[str, Any]]:
        """What results.json says: the figure at each point, and what it cost beyond those before.

        Args:
            records: what `run` returned, of all images.
        """
        points = []
        for rung in self.rungs:
            rows, planned = records.of(rung.name), self.cost(rung)
            mean = min(1.0, rows.right.mean().item()) if len(rows) else None
            points.append(
                {
                    rung.kind: rung.value,
                    "robust_accuracy": None if mean is None else round(mean, 6),
                    "ci95": [round(end, 6) for end in wilson(mean or 0.0, len(rows))],
                    "attacked": int(rows.attacked.sum()),
                    "gradient_evaluations": round(rows.gradients.double().sum().item()),
                    "queries": round(rows.queries.double().sum().item()),
                    "planned_per_image": planned.gradients + planned.queries,
                }
            )
        return points


def _spent_nothing(rows: Rows) -> Rows:
    nothing = torch.zeros_like(rows.gradients)
    return replace(rows, attacked=nothing.bool(), gradients=nothing, queries=nothing)


def _worse(so_far: Rows, here: Tensor, records: Records) -> Rows:
    """The rows so far, with those of the attacks that are worse on the draws that select."""
    columns = {
        name: values.clone() for name, values in so_far.columns().items() if values is not None
    }
    for name in records.attacks:
        rows = records.of(name)
        worse = rows.chosen_by < columns["select"][here].double().mean(dim=1)
        for fact in ("score", "select", "distance"):
            columns[fact][here[worse]] = rows.columns()[fact][worse].to(columns[fact].dtype)  # type: ignore[index]
        columns["attacked"][here] |= rows.attacked
        columns["gradients"][here] += rows.gradients.to(columns["gradients"].dtype)
        columns["queries"][here] += rows.queries.to(columns["queries"].dtype)
    return Rows(**columns)
