"""The cost of an evaluation, said before it starts, and whether its models fit its data."""

from __future__ import annotations

from collections.abc import Sequence

from pytorch_lightning.utilities import rank_zero_only

from robusttrain.core.telling import Say, duration
from robusttrain.data import ImageData
from robusttrain.evaluation.audit import LEAST, Audit
from robusttrain.evaluation.beside import Beside
from robusttrain.evaluation.certification import Certification
from robusttrain.evaluation.curve import Curve
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.taking import check_classes


@rank_zero_only
def announce(
    engine: Engine,
    data: ImageData,
    audit: Audit | None,
    say: Say,
    curves: Sequence[Curve] = (),
    besides: Sequence[Beside] = (),
    certification: Certification | None = None,
) -> tuple[int, int]:
    """Say what the evaluation will cost; returns evaluations that an image costs at most, and the
    number of images.
    """
    loader, batch = data.test_dataloader(), data.first_test_batch()
    total = sum(len(batch) for batch in loader.sampler)  # type: ignore[arg-type, union-attr]
    expected = engine.measure(batch.images, batch.labels)
    evaluations = engine.verdicts_per_image
    for name, planned in engine.scenarios.items():
        cost = planned.attack.cost()
        price = f"{cost.gradients} gradient evaluations" + (
            f" and {cost.queries} queries" if cost.queries else ""
        )
        say(
            f"{name}: {price} per image, {total} images: {cost.gradients * total:,} gradient"
            f" evaluations, about {duration(expected[name] * total)} here"
        )
        evaluations += cost.gradients + cost.queries
    for curve in curves:
        further = [sum(curve.cost(rung)) for rung in curve.further]
        work = f"{len(further)} further points, at most {sum(further) * total:,} evaluations"
        say(f"curve over {curve.kind}: {work}: images that fell are not attacked again")
        evaluations += sum(further)
    for beside in besides:
        say(f"besides, {beside.about}: at most {beside.evaluations * total:,} evaluations")
        evaluations += beside.evaluations
    if certification is not None:
        own, each = certification.passes
        made = len(engine.scenarios) * (1 + sum(len(curve.further) for curve in curves))
        spent = certification.seconds(batch.images) * total
        say(
            f"certificates: {own:,} forward passes per image, about {duration(own * spent)} here,"
            f" and {each:,} for each adversarial image that may break one, at most"
            f" {duration(made * each * spent)}"
        )
        evaluations += own + made * each
    if audit is not None:
        most, seconds = audit.cost(expected)
        few = max(LEAST, audit.size // 2)
        fewer = f"--audit_images {few} looks at fewer, " if few < audit.size else ""
        say(
            f"audit: at most {most:,} evaluations on {audit.size} images, about {duration(seconds)}"
            f" here ({fewer}--audit false leaves it out)"
        )
    judged = engine.verdicts_per_image * total
    say(f"scoring: {judged:,} forward passes, about {duration(expected['scoring'] * total)} here")
    return evaluations, total


def check_sources(engine: Engine, data: ImageData) -> None:
    """Raise UserError if the target or a source cannot take the data's images, or has other
    classes.
    """
    batch = data.first_test_batch()
    classes = data.facts().num_classes
    check_classes(engine.target, batch.images, classes)
    for name, source in engine.sources.items():
        check_classes(source, batch.images, classes, f"the source of attack {name}")
