"""Doubts about a model that is hardly ever right, or no more often than a guess: its classes may be
in another order, or it may expect other pixel values.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.core.rng import Rng
from robusttrain.core.telling import Doubt, Say
from robusttrain.data import ImageData
from robusttrain.data.notes import pasted
from robusttrain.evaluation.beside import too_weak
from robusttrain.evaluation.class_order import OtherOrder
from robusttrain.evaluation.module import Evaluation
from robusttrain.evaluation.other_values import OtherValues, Rescaled, ways
from robusttrain.evaluation.scoring import top_classes
from robusttrain.storage.files import write_json

#: From this clean accuracy on, the order of the classes is not in doubt.
TRUSTED = 0.5
_SHOWN = 20


def doubt_classes(
    content: dict[str, Any],
    evaluation: Evaluation,
    data: ImageData,
    device: torch.device,
    output: Path,
    say: Say,
    given: bool = False,
) -> dict[str, Any]:
    """Say that clean accuracy is low, or no higher than that of a guess, and whether another order
    of the classes, or other pixel values, explain it.

    Args:
        content: the content of results.json.
        evaluation: the evaluation, after its run.
        data: the evaluation's images.
        device: where the target answers once more.
        output: folder for ``classes.json``, an order that explains the accuracy.
        say: takes lines.
        given: whether images and labels came from Python.

    Returns:
        Entries for results.json; none where the accuracy raises no doubt.
    """
    clean, names = content["clean"], data.class_names
    if len(names) < 2 or clean["accuracy"] is None:
        return {}
    index, label = evaluation.records.index, evaluation.records.label
    constant = one_answer(clean, label, names)
    if clean["accuracy"] >= TRUSTED:
        for line in _no_better(clean, len(names), constant):
            say(Doubt(line))
        return {"one_answer": constant} if constant else {}
    evaluation.to(device)

    def asked(model: nn.Module) -> Tensor:
        answers = []
        for indices in index.split(data.batch_size):
            images = data.test_images(indices).images.to(device)
            rng = Rng.for_images(content["seed"], indices.to(device)).fold("order of classes")
            answers.append(top_classes(model, images, rng, draws=1, top=1)[:, 0, 0])
        return torch.cat(answers)

    target = evaluation.engine.target
    found, values = asked(target).cpu(), None
    if target.defense is None:  # what it hands on may suit the classifier
        right = {}
        for name, change in ways(data.facts().channels).items():
            # A model may refuse such values, or answer with no numbers; that is no doubt.
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                right[name] = asked(Rescaled(target.classifier, change)).cpu() == label
        values = OtherValues.of(found == label, right)
    if values is not None:
        say(Doubt(values.line(clean["accuracy"])))
        return {"other_pixel_values": asdict(values)}
    other = OtherOrder.of(found, label, names)
    for line in lines_about(clean, other, len(names), output, given, constant):
        say(Doubt(line))
    if other.explains:
        write_json({name: place for place, name in enumerate(other.order)}, output / "classes.json")
    order = {
        "explains": other.explains,
        "accuracy": round(other.best, 6),
        "held_out_accuracy": round(other.held_out, 6),
        "order": other.order,
    }
    return {"other_class_order": order} | ({"one_answer": constant} if constant else {})


def one_answer(
    clean: Mapping[str, Any], labels: Tensor, names: Sequence[str]
) -> dict[str, Any] | None:
    """The class of most images and its share, where always naming that class would be right as
    often as the model is; None where the model is right more often, or no class has most images.

    Args:
        clean: accuracy, as in results.json.
        labels: (n,) int64.
        names: of the classes.
    """
    counts = labels.bincount(minlength=len(names))
    share = counts.max().item() / max(len(labels), 1)
    if share <= TRUSTED or clean["accuracy"] > share:
        return None
    return {"class": names[int(counts.argmax())], "accuracy": round(share, 6)}


def lines_about(
    clean: dict[str, Any],
    other: OtherOrder,
    classes: int,
    output: Path,
    given: bool = False,
    constant: Mapping[str, Any] | None = None,
) -> list[str]:
    """The lines about a low clean accuracy.

    Args:
        clean: accuracy and ci95, as in results.json.
        other: the best order.
        classes: how many classes there are.
        output: folder where that order is written.
        given: whether images and labels came from Python, where no option sets their order.
        constant: from `one_answer`.
    """
    file = pasted(output / "classes.json")
    taken = f"with image folders and tables, --data.classes {file} takes it"
    fix = f"The order is written: {taken}"
    fix = "Renumber the labels, or the model's answers" if given else fix
    near = _near_chance(clean, classes)
    lines = _no_better(clean, classes, constant)
    accuracy = _accuracy(clean)
    best, names = _best(other.best, other.held_out), _names(other.order)
    if other.explains:
        text = ", which is that of the names as text, as torchvision sorts folders"
        lines.append(
            f"{accuracy}, and another order of the classes explains it: with {names}"
            f"{text if other.as_text else ''} it would be {best}. {fix}"
        )
    elif other.undecided:
        lines.append(
            f"{accuracy}, and another order of the classes may explain it: with {names} it would be"
            f" {best}; so few images decide nothing: ask more with --images"
        )
    elif near and other.held_out < TRUSTED:
        lines.append(f"no other order of the classes explains it: the best would give {best}")
    return lines


def doubts_of(content: Mapping[str, Any]) -> list[str]:
    """The doubts about an evaluation and about a model that is hardly ever right, from
    results.json, for whoever was not there when they were said; sentences.

    Args:
        content: of results.json; of earlier versions it may not name the classes.
    """
    said = [str(line).removeprefix("warning: ") for line in content.get("doubts") or ()]
    weak = too_weak(content)
    found = [*_seldom_right(content), *([weak] if weak else [])]
    return [
        *(f"Said before it began: {line}." for line in said),
        *(f"{line[0].upper()}{line[1:]}." for line in found),
    ]


def _seldom_right(content: Mapping[str, Any]) -> list[str]:
    clean, classes = content["clean"], len(content.get("classes") or ())
    constant = content.get("one_answer")
    if classes < 2 or clean["accuracy"] is None:
        return []
    if clean["accuracy"] >= TRUSTED:
        return _no_better(clean, classes, constant)
    if values := content.get("other_pixel_values"):
        lines = [OtherValues(values["values"], values["accuracy"]).line(clean["accuracy"])]
    else:
        lines = _no_better(clean, classes, constant)
        other = content.get("other_class_order")
        if other and other["explains"]:
            best = _best(other["accuracy"], other["held_out_accuracy"])
            lines.append(
                f"{_accuracy(clean)}, and another order of the classes explains it: with"
                f" {_names(other['order'])} it would be {best}"
            )
    return lines


def _accuracy(clean: Mapping[str, Any]) -> str:
    return f"clean accuracy is {100 * clean['accuracy']:.1f} %"


def _near_chance(clean: Mapping[str, Any], classes: int) -> str | None:
    chance = 1 / classes
    if clean["ci95"][0] > chance:
        return None
    few = clean["accuracy"] >= TRUSTED
    how = "which chance explains with so few images" if few else "no better than chance"
    return (
        f"{_accuracy(clean)}, {how} ({100 * chance:.1f} % of {classes} classes):"
        " what attacks leave of it says nothing about robustness"
    )


def _no_better(
    clean: Mapping[str, Any], classes: int, constant: Mapping[str, Any] | None
) -> list[str]:
    """What to say of a model that a guess equals: one by chance, or always of one class."""
    if near := _near_chance(clean, classes):
        return [near]
    if not constant:
        return []
    return [
        f"{_accuracy(clean)}, and a model that always answers {constant['class']!r} is right on"
        f" {100 * constant['accuracy']:.1f} % of these images, attacked or not: what attacks leave"
        " says little about robustness"
    ]


def _best(accuracy: float, held_out: float) -> str:
    return (
        f"{100 * accuracy:.1f} % (judged on images that did not choose it: {100 * held_out:.1f} %)"
    )


def _names(order: Sequence[str]) -> str:
    return ", ".join(map(str, order[:_SHOWN])) + (" ..." if len(order) > _SHOWN else "")
