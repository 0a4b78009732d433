"""Whether models, images and attacks fit each other: asked before anything is attacked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from robusttrain.attacks import Attack, Cost, Queried, Threat, prepared
from robusttrain.attacks.base import check_images
from robusttrain.attacks.parts.threats import described, kept
from robusttrain.attacks.parts.updates import MOMENTUM, STEEPEST, UpdateRule
from robusttrain.core.errors import OptionError, UserError, first_line
from robusttrain.core.memory_format import in_rows
from robusttrain.core.parts import part
from robusttrain.core.rng import Rng
from robusttrain.core.telling import Say
from robusttrain.data import ImageData
from robusttrain.data.batches import Split
from robusttrain.evaluation.records import CLEAN
from robusttrain.evaluation.scenario import Scenario
from robusttrain.models.declared import dtype_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.fast import TOLERANCE, leave_uncopied
from robusttrain.storage.raised import said

#: How many images of the first batch the target is asked about before it is asked about all.
ASKED = 8
#: What files and folders of the results and of the journal are called.
TAKEN = {"verdicts", "examples", "finished", "claims", "audit"}


def repeated(target: nn.Module, images: Tensor, rng: Rng) -> Tensor | None:
    """Logits (ASKED, K) of the first images, if the target answers the same where its streams are
    the same: then it draws from nowhere else, and who knows the streams knows the draw. Else None.

    Args:
        target: images to logits, random or not.
        images: (B, C, H, W).
        rng: streams of the images, (B,).
    """
    queried = Queried.of(target)
    with prepared(queried), torch.no_grad():
        first, second = (queried(images[:ASKED].clone(), rng[:ASKED]) for _ in range(2))
    return first if torch.equal(first.nan_to_num(), second.nan_to_num()) else None


def check_copy(target: DefendedClassifier, images: Tensor, rng: Rng, say: Say) -> None:
    """Compare the copy of a target's classifier that attacks would differentiate with the
    classifier itself. Where it answers otherwise, they take the classifier from now on, and a line
    says so.

    The defense is no part of it: one that searches on the classifier amplifies rounding.

    Args:
        target: the defended classifier.
        images: (B, C, H, W).
        rng: streams of the images, the same for both.
        say: takes the line.
    """
    bare = DefendedClassifier(None, target.classifier)
    short = dtype_of(target.classifier) in (torch.bfloat16, torch.float16)
    try:
        expected = repeated(bare, in_rows(images), rng)
    except Exception as error:  # noqa: BLE001 - it may take only what the defense makes of an image
        say(f"the copy that attacks differentiate is not compared: {said(error)}")
        return
    if expected is None:  # it draws by itself, so no two answers can be compared
        return
    try:
        copied = repeated(bare.fast(), images, rng)
        off = torch.tensor(torch.inf) if copied is None else (copied - expected).abs().nan_to_num()
    except Exception as error:  # noqa: BLE001 - models are any code
        what = f"cannot answer ({first_line(error)})"
    else:
        # Half types round by more; their copy computes in float32.
        if off.max() <= (0.05 if short else TOLERANCE) * expected.nan_to_num().abs().max():
            return
        what = f"answers otherwise (logits differ by up to {float(off.max()):.2g})"
    leave_uncopied(target.classifier)
    say(
        f"the copy of the model that attacks would differentiate {what}, so they differentiate the"
        " model itself, which is slower: a hook or a function in it holds on to the model, or it"
        " reads weights or images as they lie in memory"
    )


def one_threat(scenarios: Mapping[str, Scenario]) -> None:
    """Raise UserError if threats differ between attacks."""
    described_as = {name: described(each.attack.threat) for name, each in scenarios.items()}
    different = {tuple(about.values()): name for name, about in described_as.items()}
    if len(different) > 1:
        listed = ", ".join(
            f"{name}: {norm} {epsilon:g}{f' of {ball[0]}' if ball else ''}"
            for (norm, epsilon, *ball), name in different.items()
        )
        kinds = {(type(each.attack.threat), each.attack.threat.norm) for each in scenarios.values()}
        radii = {epsilon for _, epsilon, *_ in different}
        fix = (
            "give --epsilon E"
            if len(kinds) == 1 and len(radii) > 1
            else "evaluate the attacks of each norm, and of each ball, in a run of their own"
        )
        raise UserError(f"attacks of different threats have no common worst case ({listed}): {fix}")


def refuse_undeclared(scenarios: Mapping[str, Scenario]) -> None:
    """Raise UserError if an attack does not say where its images may go, or what it asks."""
    for name, each in scenarios.items():
        kind = f"attack {name}: {type(each.attack).__name__}"
        if not isinstance(getattr(each.attack, "threat", None), Threat):
            raise UserError(
                f"{kind} has no threat: give it a field, threat: Threat, such as Linf()"
            )
        cost = each.attack.cost()
        numbers = [*cost] if isinstance(cost, Cost) else []
        if not numbers or not all(0 <= number < math.inf for number in numbers):
            fix = "give Cost(gradients=, queries=), what run asks of the source for an image"
            raise UserError(f"{kind}.cost() returned {cost!r}: {fix}")


def refuse_names(scenarios: Mapping[str, Scenario]) -> None:
    """Raise UserError if an attack is called what something else is: the rows without an attack, a
    stage of a curve or of an evaluation beside this one (these have "=" in it), a path, or a file
    that the results or the journal has.
    """
    for name in scenarios:
        if name in TAKEN or name.endswith("-verdicts"):
            fix = f"no attack can be called that: files of the results are called {name}"
            raise OptionError("--attacks", name, fix)
        if name == CLEAN or not name or name.startswith(".") or set(name) & {*"/\\="}:
            fix = f"no attack can be called that: no {CLEAN!r}, and no '/', '\\' or '=' in it"
            raise OptionError("--attacks", name, fix)


def refuse_other_radii(epsilon: float | None, threats: Mapping[str, Threat]) -> None:
    """Raise UserError if a plan states a radius that no attack of it has.

    Args:
        epsilon: as the plan states it, or None.
        threats: of its attacks, by name.
    """
    radii = {each.epsilon for each in threats.values()}
    if epsilon is not None and radii and epsilon not in radii:
        has = ", ".join(f"{radius:g}" for radius in sorted(radii))
        fix = (
            f"no attack of the plan has this radius (but {has}): give attacks in it as well, as"
            " attack_nodes(names, [], epsilon) of robusttrain.config.attacks does"
        )
        raise OptionError("epsilon", epsilon, fix)


def doubts(scenarios: Mapping[str, Scenario]) -> list[str]:
    """A line for each reason why an attack may be weaker than it looks, as its settings tell."""
    return [
        *short_steps(scenarios),
        *foreign_norms(scenarios),
        *projected_at_the_end(scenarios),
    ]


def short_steps(scenarios: Mapping[str, Scenario]) -> list[str]:
    """A line for each attack whose steps do not reach the threat's radius, as where a preset's step
    size is given in pixel values and the radius is another one.
    """
    lines = []
    for name, each in scenarios.items():
        reach, radius = each.attack.reach, each.attack.threat.epsilon
        if reach == 0 < radius:
            lines.append(
                f"warning: {name}: takes no step, so what it hands back is where it started: give"
                " steps of 1 or more"
            )
        elif reach is not None and 0 < reach < radius * (1 - 1e-6):
            lines.append(
                f"{name}: its steps together reach {reach:g} of the radius {radius:g}, so it looks"
                " at a part of the ball alone: give it more or longer steps (steps, step_size)"
            )
    return lines


def foreign_norms(scenarios: Mapping[str, Scenario]) -> list[str]:
    """A line for each attack whose rule is made for a norm of ours, in a threat of another one:
    signs in an L1 ball lead to its surface at once, and nearly nowhere on it.
    """
    return [
        f"warning: {name}: the rule {rule} is made for another norm than {norm!r}, so its steps"
        f" may lead nearly nowhere: --attack.{name}.rule takes a class of your own (UpdateRule);"
        " until there is one, believe the lower figure of Normalized and Sign"
        for name, each in scenarios.items()
        if (norm := each.attack.threat.norm) not in STEEPEST
        for rule in sorted(_rules(each.attack))
    ]


def projected_at_the_end(scenarios: Mapping[str, Scenario]) -> list[str]:
    """A line about attacks that look for the nearest boundary by a norm alone, in a ball that is
    more than a radius.
    """
    lines = []
    for name, each in scenarios.items():
        ball = described(each.attack.threat).get("ball")
        if ball and each.attack.by_norm:
            lines.append(
                f"warning: {name}: looks for the nearest boundary by the norm alone, and {ball}"
                " throws away much of what it finds: believe attacks that project each step, as"
                " --attack pgd, --attack apgd-ce and --attack square do"
            )
    return lines


def _all(attack: Attack) -> Iterator[Attack]:
    """An attack, its members, and theirs."""
    yield attack
    for member in attack.members:
        yield from _all(member)


def _rules(attack: Attack) -> set[str]:
    """The names of our own rules of steepest ascent, or of momentum, in an attack or its
    members.
    """
    kinds = {*map(type, STEEPEST.values()), *MOMENTUM.values()}
    rules = (part(each, UpdateRule)[1] for each in _all(attack))  # type: ignore[type-abstract]
    return {type(rule).__name__ for rule in rules if type(rule) in kinds}


def few_classes(data: ImageData) -> list[str]:
    """A line where the test images are of far fewer classes than so many of all classes would be:
    the first images of a folder in order are of one.
    """
    split: Split = data.test_dataloader().dataset  # type: ignore[assignment]
    labels, classes = split.labels[split.subset], data.facts().num_classes
    present, count = len(labels.unique()), len(labels)
    expected = classes * (1 - (1 - 1 / classes) ** count)  # of images drawn alike from all
    if present >= expected / 2:
        return []
    which = "class" if present == 1 else "classes"
    return [
        f"the {count} images are of {present} {which} of {classes}: the figures say nothing of the"
        " others"
    ]


def refuse_outside(name: str, scenario: Scenario, adversarial: Tensor, images: Tensor) -> None:
    """Raise UserError if an attack left its threat: its results may not be scored."""
    if not len(images):
        return
    threat = scenario.attack.threat
    most = threat.distance(adversarial, images).max().to(adversarial.dtype)
    # As numbers at once: the host waits for an accelerator once.
    farthest, low, high = torch.stack([most, *torch.aminmax(adversarial)]).tolist()
    # 1e-6 allows for the rounding of x + epsilon and of the difference, each half a unit in the
    # last place of a number up to 1.
    if not (farthest <= threat.epsilon + 1e-6 and low >= 0 and high <= 1):
        raise UserError(
            f"attack {name} left its threat: distance {farthest:.6g} (epsilon {threat.epsilon:g}),"
            f" pixel values in [{low:.6g}, {high:.6g}]; its figures would be worth nothing"
        )
    ball = described(threat).get("ball")
    if ball and not kept(threat, adversarial, images).all():  # of others the distance said it
        raise UserError(
            f"attack {name} left its threat: {ball}.project moves"
            " what it returned; its figures would be worth nothing: project inside the attack"
        )


def settle(target: DefendedClassifier, images: Tensor, indices: Tensor, seed: int = 0) -> bool:
    """Find out whether a target is random: ask it twice about each image, on draws of their own.

    An `Engine` does this itself with its first batch. Callers that have to know earlier, to choose
    attacks or to fix draws, call this function. The target remembers the answer.

    Args:
        target: the defended classifier.
        images: (B, C, H, W), pixel values in [0, 1], on the target's device.
        indices: (B,) int64, of the images in their data set.
        seed: of the evaluation.

    Returns:
        Whether the target is random: it says so, two answers differed, or it drew from a global
        generator.
    """
    queried = Queried(target)
    target.observed_random = ask_about(queried, images.float(), indices, seed)
    target.observed_unseen = queried.draws_unseen
    return target.observed_random


def ask_about(queried: Queried, images: Tensor, indices: Tensor, seed: int) -> bool:
    """`Queried.settle` on the first few of the images, and on all of them where those few do not
    show that the target is random; arguments as for `settle`.
    """
    images, rng = check_images(images), Rng.for_images(seed, indices).fold("random")
    with prepared(queried):
        return queried.settle(images[:ASKED].clone(), rng[:ASKED]) or (
            len(images) > ASKED and queried.settle(images.clone(), rng)
        )
