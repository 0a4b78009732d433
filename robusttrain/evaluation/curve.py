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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robusttrain.attacks import Attack, Cost
from robusttrain.core.errors import UserError
from robusttrain.evaluation.beside import Under
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.results import alike, figure
from robusttrain.evaluation.scoring import wilson, worst_case


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

    def stage(self, attack: str) -> str:
        """The name under which an attack's verdicts at this point are recorded."""
        return f"{self.name}={attack}"

    def of(self, attack: Attack) -> Attack | None:
        """The attack's version here; None where it has none."""
        if self.kind == "epsilon":
            return attack.at_radius(self.value)
        return attack.scaled(self.value)


def file_name(kind: str) -> str:
    """Under which a curve's verdicts lie in an evaluation's folder, before ``-verdicts``."""
    return f"curve_{kind}"


def given(kept: Records, rows: Sequence[Mapping[str, Any]], kind: str) -> bool:
    """Whether verdicts of a curve (what `Curve.run` returned, of all images) give the figures that
    results.json states of it.
    """
    so_far: list[str] = []
    for row in rows:
        here = [name for name in kept.attacks if name.startswith(f"{Rung(kind, row[kind]).name}=")]
        so_far += here
        score = kept.under(so_far).worst
        attacked = torch.zeros(len(kept), dtype=torch.bool)
        for name in here:
            attacked |= kept.of(name).attacked
        found = figure(score) | {"attacked": int(attacked.sum())} | _spent(kept, here)
        if not here:  # only where nothing may change
            found[kind] = 0
        if not alike(found, {key: row[key] for key in found}):
            return False
    return so_far == kept.attacks


def _spent(records: Records, stages: Sequence[str]) -> dict[str, int]:
    """What the attacks at a point asked for, over all images."""
    rows = [records.of(name) for name in stages]
    return {
        "gradient_evaluations": round(sum(_total(each.gradients) for each in rows)),
        "queries": round(sum(_total(each.queries) for each in rows)),
    }


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
            if rung.value and rung.value != self.own and not self.attacks(rung):
                raise UserError(f"{rung.kind} {rung.value:g}: no attack has a version of it")

    def attacks(self, rung: Rung) -> dict[str, Attack]:
        """The attacks' versions at a point by name; none where nothing may change."""
        if not rung.value:
            return {}
        scenarios = self.engine.scenarios.items()
        if rung.value == self.own:
            return {name: each.attack for name, each in scenarios}
        versions = {name: rung.of(each.attack) for name, each in scenarios}
        return {name: attack for name, attack in versions.items() if attack is not None}

    def cost(self, rung: Rung) -> Cost:
        """What an image costs at a point, at most."""
        sources = self.engine.sources
        costs = [each.cost_on(sources[name]) for name, each in self.attacks(rung).items()]
        return Cost(sum(each.gradients for each in costs), sum(each.queries for each in costs))

    @property
    def further(self) -> list[Rung]:
        """The points that the evaluation itself does not reach."""
        return [rung for rung in self.rungs if rung.value not in (0, self.own)]

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        whole: Records,
        seen: Callable[[Rung, Tensor, Records], None] | None = None,
    ) -> Records:
        """Verdicts of every attack at every point; of an image that fell before, those of no
        attack.

        Args:
            images: (B, C, H, W), pixel values in [0, 1].
            labels: (B,) int64.
            indices: (B,) int64.
            whole: what the evaluation itself records for them.
            seen: called at each further point with the rows of the batch that were attacked there,
                (m,) int64, and with their records, adversarial images included.
        """
        clean = replace(whole.of(CLEAN), images=None, broken=None)
        rows, left = {CLEAN: clean}, ~self._broken(whole.of(CLEAN))
        for rung in self.rungs:
            own = rung.value == self.own
            here = torch.arange(len(left)) if own else left.nonzero().squeeze(1)
            records = whole if own else None
            if not own and rung.value and len(here):
                chosen = here.to(images.device)
                version = self.engine.varied(rung.of, keep_images=seen is not None)
                if self.engine.journal:
                    order = [*version.scenarios]
                    version.journal = Under(self.engine.journal, rung.name, order)
                records, _ = version.run(images[chosen], labels[chosen], indices[chosen])
                if seen is not None:
                    seen(rung, here, records)
            for name in self.attacks(rung):
                if records is None:
                    rows[rung.stage(name)] = clean
                else:
                    rows[rung.stage(name)] = _with(clean, here, records.of(name))
                    left[here[self._broken(records.of(name))]] = False
        return Records(rows)

    def _broken(self, rows: Rows) -> Tensor:
        """(n,) bool: images that fell for good. Of a random target only the engine knows that: a
        few draws that are wrong may be luck.
        """
        assert rows.broken is not None  # the engine says so of every stage
        return rows.broken if self.engine.random else ~rows.select.any(dim=1)

    def worst(self, records: Records, rung: Rung) -> tuple[Tensor, Tensor]:
        """The worst case up to a point, as an evaluation has it: of each image the share of
        selecting draws, and of scoring draws, that are right, (n,) each.
        """
        so_far = [each for each in self.rungs if each.value <= rung.value]
        stages = [each.stage(name) for each in so_far for name in self.attacks(each)]
        rows = [records.of(name) for name in (CLEAN, *stages)]
        select = torch.stack([each.chosen_by for each in rows])
        score = torch.stack([each.right for each in rows])
        return select.amin(dim=0), worst_case(select, score)

    def points(self, records: Records) -> list[dict[str, Any]]:
        """What results.json says: the figure at each point, and what it cost beyond those before.

        Args:
            records: what `run` returned, of all images.
        """
        points = []
        for rung in self.rungs:
            right, planned = self.worst(records, rung)[1], self.cost(rung)
            stages = [rung.stage(name) for name in self.attacks(rung)]
            attacked = torch.stack(
                [
                    torch.zeros_like(right).bool(),
                    *(records.of(name).attacked for name in stages),
                ]
            )
            mean = min(1.0, right.mean().item()) if len(right) else None
            points.append(
                {
                    rung.kind: rung.value,
                    "robust_accuracy": None if mean is None else round(mean, 6),
                    "ci95": [round(end, 6) for end in wilson(mean or 0.0, len(right))],
                    "attacked": int(attacked.any(dim=0).sum()),
                    **_spent(records, stages),
                    "planned_per_image": planned.gradients + planned.queries,
                }
            )
        return points


def _total(values: Tensor) -> float:
    return values.double().sum().item()


def _with(clean: Rows, here: Tensor, rows: Rows) -> Rows:
    """Rows of all images: those of an attack ``here``, and of no attack elsewhere."""
    columns = {
        name: values.clone() for name, values in clean.columns().items() if values is not None
    }
    for name, values in columns.items():
        values[here] = rows.columns()[name].to(values.dtype)  # type: ignore[union-attr]
    return Rows(**columns)
