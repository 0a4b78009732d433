"""Evaluates what somebody hands over in Python: a model, images and labels, attacks."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from robusttrain.attacks import Attack, Target, Threat
from robusttrain.attacks.sources.surrogates import surrogates_in
from robusttrain.config.attacks import attack_nodes, by_name, scenario, stem
from robusttrain.config.describe import described, path_of, scenario_node
from robusttrain.config.suites import suite, suite_settings
from robusttrain.config.targets import behind
from robusttrain.core.advice import without_advice
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.telling import SILENT, Telling
from robusttrain.data import ImageData
from robusttrain.data.given import GivenImages, collected
from robusttrain.defenses import Defense
from robusttrain.evaluation import Scenario
from robusttrain.evaluation.plan import EvaluationPlan, Node
from robusttrain.evaluation.report import Results, read_results
from robusttrain.evaluation.running import attack, compilation_of, precisions_of
from robusttrain.evaluation.taking import classes_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.reporting.report import write_report
from robusttrain.running.evaluating import (
    applying,
    fitted,
    for_the_bare,
    tell_unless_held_out,
    tester,
)
from robusttrain.storage.files import hash_of_tensors, writable

#: What may stand for attacks: a preset's name, names, or attacks by names of their own.
Attacks = str | Sequence[str] | Mapping[str, str | Attack | Scenario]


_lock = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let evaluations of several threads run one after another: Lightning and filters of warnings
    change what belongs to the whole process.
    """
    with _lock:
        yield


@one_at_a_time()
@without_advice()
def evaluate_given(
    model: nn.Module | Callable[[Tensor], Any],
    images: Tensor | Dataset[Any] | DataLoader[Any] | ImageData,
    labels: Tensor | None,
    attacks: Attacks | None,
    suites: str | Sequence[str] | None,
    threat: Threat | None,
    defense: Defense | None,
    count: int | None,
    batch_size: int,
    of_suites: Mapping[str, bool | None],
    output: str | Path | None,
    settings: Mapping[str, Any],
    telling: Telling = SILENT,
) -> Results:
    """`robusttrain.evaluate`, whose arguments these are.

    ``of_suites`` are options that a suite may set, None for the suite's; ``settings`` are other
    fields of a plan.
    """
    target = _target(model, defense)
    names = [suites] if isinstance(suites, str) else list(suites or ())
    if attacks is None and not names:
        names = ["worst-case"]
    scenarios, asked, unfit = _scenarios(attacks, names, threat)
    data = _data(images, labels, count, target, batch_size, settings["seed"])
    chosen: dict[str, Any] = {
        option: _said(option, said, names) for option, said in of_suites.items()
    }
    modes = [(module, module.training) for module in target.modules()]
    gradients = [(parameter, parameter.grad) for parameter in target.parameters()]
    device = _device(target)
    with tempfile.TemporaryDirectory() if output is None else nullcontext(output) as folder:
        plan = EvaluationPlan(
            model={"class_path": path_of(type(target.classifier))},
            defense=described(target.defense),
            data={"class_path": path_of(type(data)), "init_args": _identity(data)},
            attacks={name: scenario_node(each) for name, each in scenarios.items()},
            suites=names,
            asked=asked,
            epsilon=threat.epsilon if threat is not None else None,
            split=data.attacked,
            output=str(writable(Path(folder), "output")),
            fresh=output is None,
            handed_over=True,
            **{**settings, **chosen},
        )
        tell_unless_held_out(plan, data)
        try:
            return _run(plan, target, data, scenarios, unfit, device, telling)
        finally:
            # Lightning leaves a module on the CPU, without gradients, and its own idea of modes.
            target.to(device)
            for parameter, gradient in gradients:
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
            for module, training in modes:
                module.training = training


def _run(
    plan: EvaluationPlan,
    target: DefendedClassifier,
    data: ImageData,
    scenarios: Mapping[str, Scenario],
    unfit: Mapping[str, str],
    device: torch.device,
    telling: Telling,
) -> Results:
    """Everything from the first question to the results."""
    missing = {
        name: unfit.get(name, "the attacker has no images to train a model on")
        for each in plan.suites
        for name in suite(each)
        if name not in scenarios
    }
    name = behind(target, path_of(type(target.classifier)).rpartition(".")[2])
    subject = fitted(plan, target.cpu(), name, data, telling.say, missing)
    attacks = {name: each for name, each in scenarios.items() if name not in subject.unfit}
    alone = {each: scenarios[each] for each in for_the_bare(plan, subject) if each in scenarios}
    fitting = plan.without(subject.unfit)
    subject, attacks = applying(fitting, subject, attacks, alone, telling.say)
    trainer = tester(_place(device), telling.say)
    precisions = precisions_of(plan, subject, attacks, device, telling.say)
    compilation = compilation_of(plan, subject, attacks, precisions, device, telling.say)
    attack(plan, subject, attacks, precisions, trainer, telling, write_report, compilation)
    return read_results(plan.output)


def _place(device: torch.device) -> dict[str, Any]:
    """Lightning's options for one process on a device."""
    kind = {"cuda": "gpu", "cpu": "cpu", "mps": "mps"}.get(device.type, "auto")
    return {"accelerator": kind, "devices": 1 if device.index is None else [device.index]}


def _target(
    model: nn.Module | Callable[[Tensor], Any], defense: Defense | None
) -> DefendedClassifier:
    """The model behind the defense, if there is one."""
    if defense is None:
        return DefendedClassifier.of(model)
    if isinstance(model, DefendedClassifier):
        raise UserError("defense: the model has one already: give its classifier")
    if not isinstance(defense, Defense):
        raise UserError(
            f"defense: expected a Defense, got {type(defense).__name__}: write a class with"
            " transform (docs/own-defense.md)"
        )
    return DefendedClassifier(defense, model)


def _scenarios(
    attacks: Attacks | None, suites: Sequence[str], threat: Threat | None
) -> tuple[dict[str, Scenario], list[str], dict[str, str]]:
    """Attacks by name in their order, in the threat; which of them were asked for; and why some of
    a suite's cannot be moved there.
    """
    if isinstance(attacks, str):
        attacks = [attacks]
    if isinstance(attacks, Attack | Scenario):
        raise UserError("attacks: give it a name of its own: attacks={'mine': ...}")
    if threat is not None and not isinstance(threat, Threat):
        raise UserError(f"threat: expected Linf(...) or L2(...), got {threat!r}")
    if not isinstance(attacks, Mapping) and any(
        not isinstance(each, str) for each in attacks or ()
    ):
        raise UserError(
            "attacks: a list holds presets' names; give others names of their own:"
            " attacks={'mine': ...}"
        )
    said = attacks if isinstance(attacks, Mapping) else by_name(attacks or (), "attacks")
    asked = {name: _scenario(each) for name, each in said.items()}
    from_suites = {
        name: scenario(node, name, "attacks")
        for name in dict.fromkeys(name for each in suites for name in suite(each))
        if name not in asked and not surrogates_in(node := _node(name))
    }
    every = from_suites | asked
    fitting: dict[str, Scenario] = {}
    unfit: dict[str, str] = {}
    radii = {name: radius for each in suites for name, radius in _radii(each).items()}
    for name, each in every.items():
        moved = each.attack
        if threat is None and name not in asked and name in radii:
            moved = moved.at_radius(radii[name])
        try:
            moved = moved if threat is None else _within(moved, threat, name)
        except OptionError as error:
            if name in asked:
                raise
            unfit[name] = f"the threat {error.fix}"  # "must be Linf: ..."
            continue
        fitting[name] = replace(each, attack=moved)
    return fitting, [*asked], unfit


def _radii(name: str) -> dict[str, float]:
    """The radius that a suite sets, by its attacks."""
    radius = suite_settings(name).get("epsilon")
    return {} if radius is None else dict.fromkeys(suite(name), radius)


def _within(attack: Attack, threat: Threat, name: str) -> Attack:
    """The attack of that name in the threat."""
    try:
        return attack.within(threat)
    except OptionError as error:
        raise error.under(f"attacks.{name}") from error


def _scenario(said: str | Attack | Scenario) -> Scenario:
    """An attack ready to run, of whatever stands for it."""
    if isinstance(said, Scenario):
        return said
    if isinstance(said, Attack):
        return Scenario(said, Target())
    if not isinstance(said, str):
        raise UserError(
            f"attacks: expected a preset's name, an Attack or a Scenario, got {said!r}: an attack"
            " of your own is a class (docs/own-attack.md)"
        )
    node = _node(said)
    if surrogates_in(node):
        raise UserError(
            f"attacks: {said} trains models of the attacker's own, for which it needs training"
            " images: take evaluate.py with --data"
        )
    return scenario(node, stem(said), "attacks")


def _node(name: str) -> Node:
    """The content of a preset."""
    (node,) = attack_nodes([name], option="attacks").values()
    return node


def _said(option: str, said: bool | None, suites: Sequence[str]) -> bool:
    """An option that a suite may set: as said, or as a suite has it."""
    if said is not None:
        return said
    return any(suite_settings(name).get(option, False) for name in suites)


def _data(
    images: Any,
    labels: Tensor | None,
    count: int | None,
    target: DefendedClassifier,
    batch_size: int,
    seed: int,
) -> ImageData:
    """The images as a data module that is set up for "test"."""
    if isinstance(images, ImageData):
        if labels is not None:
            raise UserError("labels: the data set brings labels of its own: leave these out")
        data = images.alone()  # a limit is this evaluation's, and not the caller's
        data.prepare_data()
        if names := target.class_names:
            data.number_as(names)
        if count is not None:
            data.limit_test(count, data.seed)
    else:
        pictures, classes = collected(images, labels, count, seed)
        few = pictures[:1].float() / (255 if pictures.dtype == torch.uint8 else 1)
        number = classes_of(target, few.to(_device(target)))
        data = GivenImages(pictures, classes, number, batch_size=batch_size)
        if count is not None and len(pictures) > count:
            data.limit_test(count, seed)
    data.setup("test")
    return data


def _identity(data: ImageData) -> dict[str, Any]:
    """What tells these images from others."""
    if not isinstance(data, GivenImages):
        return {}
    held = {"images": data.images, "labels": data.labels}
    return {"images": len(data.images), "content": hash_of_tensors(held)}


def _device(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
