"""The cost of an evaluation, said before it starts, and whether its models fit its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pytorch_lightning.utilities import rank_zero_only

from robusttrain.core.telling import Say, duration
from robusttrain.data import ImageData
from robusttrain.evaluation.audit import LEAST, Audit
from robusttrain.evaluation.beside import Beside
from robusttrain.evaluation.certification import Certification
from robusttrain.evaluation.curve import Curve
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.taking import check_classes


@dataclass(frozen=True)
class EvaluationCost:
    """Of an evaluation, at most.

    Args:
        evaluations: gradient evaluations and queries of an image.
        images: how many.
        seconds: of all, the audit among them; curves and further evaluations at the mean price of
            the attacks.
    """

    evaluations: float = 0.0
    images: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"in all: at most about {duration(self.seconds)} here"


@rank_zero_only
def announce(
    engine: Engine,
    data: ImageData,
    audit: Audit | None,
    say: Say,
    device: torch.device,
    curves: Sequence[Curve] = (),
    besides: Sequence[Beside] = (),
    certification: Certification | None = None,
) -> EvaluationCost:
    """Say what the evaluation will cost.

    Args:
        engine: of the evaluation; its models lie on the device.
        data: set up for "test".
        audit: that follows, if any.
        say: takes lines.
        device: where the evaluation will run.
        curves: that go on from it.
        besides: further evaluations.
        certification: of its images, if any.
    """
    loader, batch = data.test_dataloader(), data.first_test_batch()
    total = sum(len(batch) for batch in loader.sampler)  # type: ignore[arg-type, union-attr]
    images, labels = batch.images.to(device), batch.labels.to(device)
    expected = engine.measure(images, labels)
    evaluations: float = engine.verdicts_per_image
    for name in engine.scenarios:
        cost = engine.cost(name)
        price = f"{cost.gradients} gradient evaluations" + (
            f" and {cost.queries} queries" if cost.queries else ""
        )
        say(
            f"{name}: {price} per image, {total} images: {cost.gradients * total:,} gradient"
            f" evaluations, about {duration(expected[name] * total)} here"
        )
        evaluations += cost.gradients + cost.queries
    each = sum(expected.values()) / max(1.0, evaluations)
    for curve in curves:
        further = [sum(curve.cost(rung)) for rung in curve.further]
        work = f"{len(further)} further points, at most {sum(further) * total:,} evaluations"
        say(f"curve over {curve.kind}: {work}: images that fell are not attacked again")
        evaluations += sum(further)
    for beside in besides:
        say(f"besides, {beside.about}: at most {beside.evaluations * total:,} evaluations")
        evaluations += beside.evaluations
    seconds = each * evaluations * total
    if certification is not None:
        own, judged = certification.passes
        made = len(engine.scenarios) * (1 + sum(len(curve.further) for curve in curves))
        spent = certification.seconds(images) * total
        say(
            f"certificates: {own:,} forward passes per image, about {duration(own * spent)} here,"
            f" and {judged:,} for each adversarial image that may break one, at most"
            f" {duration(made * judged * spent)}"
        )
        evaluations += own + made * judged
        seconds += (own + made * judged) * spent
    if audit is not None:
        most, audited = audit.cost(expected)
        seconds += audited
        few = max(LEAST, audit.size // 2)
        fewer = f"--audit_images {few} looks at fewer, " if few < audit.size else ""
        say(
            f"audit: at most {most:,} evaluations on {audit.size} images, about {duration(audited)}"
            f" here ({fewer}--audit false leaves it out)"
        )
    passes = engine.verdicts_per_image * total
    say(f"scoring: {passes:,} forward passes, about {duration(expected['scoring'] * total)} here")
    return EvaluationCost(evaluations, total, seconds)


def check_sources(engine: Engine, data: ImageData) -> None:
    """Raise UserError if the target or a source cannot take the data's images, or has other
    classes.
    """
    batch = data.first_test_batch()
    classes = data.facts().num_classes
    check_classes(engine.target, batch.images, classes)
    for name, source in engine.sources.items():
        check_classes(source, batch.images, classes, f"the source of attack {name}")
