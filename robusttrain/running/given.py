"""Evaluates what somebody hands over in Python: a model, images and labels, attacks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from robusttrain.attacks import Attack, Target, Threat
from robusttrain.config.attacks import attack_nodes, scenario, stem
from robusttrain.config.describe import described, path_of, scenario_node
from robusttrain.config.suites import left_out, refuse_few_classes, suite, suite_settings
from robusttrain.config.trainer import trainer_from
from robusttrain.core.errors import UserError
from robusttrain.core.telling import SILENT, Telling
from robusttrain.data import ImageData
from robusttrain.data.given import GivenImages, collected
from robusttrain.defenses import Defense
from robusttrain.evaluation import Scenario, check_classes, settle
from robusttrain.evaluation.engine import classes_of
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.report import Results, read_results
from robusttrain.evaluation.running import Subject, attack, precisions_of
from robusttrain.models.declared import as_module
from robusttrain.models.defended import DefendedClassifier
from robusttrain.reporting.report import write_report
from robusttrain.running.surrogates import surrogates_in
from robusttrain.storage.files import hash_of_tensors, writable

#: What may stand for attacks: a preset's name, names, or attacks by names of their own.
Attacks = str | Sequence[str] | Mapping[str, str | Attack | Scenario]


def evaluate_given(
    model: nn.Module | Callable[[Tensor], Any],
    images: Tensor | Dataset[Any] | DataLoader[Any] | ImageData,
    labels: Tensor | None,
    attacks: Attacks | None,
    suites: str | Sequence[str] | None,
    threat: Threat | None,
    defense: Defense | None,
    count: int | None,
    settings: Mapping[str, Any],
    telling: Telling = SILENT,
) -> Results:
    """`robusttrain.evaluate`, whose arguments these are; ``settings`` are those of a plan."""
    target = _target(model, defense)
    names = [suites] if isinstance(suites, str) else list(suites or ())
    if attacks is None and not names:
        names = ["worst-case"]
    scenarios, asked = _scenarios(attacks, names, threat)
    data = _data(images, labels, count, target, settings.get("batch_size", 128))
    modes = [(module, module.training) for module in target.modules()]
    device = _device(target)
    output = settings.get("output")
    with tempfile.TemporaryDirectory() if output is None else nullcontext(output) as folder:
        plan = EvaluationPlan(
            model={"class_path": path_of(type(target.classifier))},
            defense=described(target.defense),
            data={"class_path": path_of(type(data)), "init_args": _identity(data)},
            attacks={name: scenario_node(each) for name, each in scenarios.items()},
            suites=names,
            asked=asked,
            epsilon=threat.epsilon if threat is not None else None,
            draws=settings.get("draws", 10),
            precision=settings.get("precision", "auto"),
            survivors=_survivors(settings.get("survivors"), names),
            seed=settings.get("seed", 0),
            output=str(writable(Path(folder), "output")),
            fresh=output is None,
            audit=settings.get("audit", True),
            save_verdicts=True,
            save_images=settings.get("save_images", False),
        )
        try:
            return _run(plan, target, data, scenarios, device, telling)
        finally:
            # Lightning leaves a module on the CPU, and its own idea of modes.
            target.to(device)
            for module, training in modes:
                module.training = training


def _run(
    plan: EvaluationPlan,
    target: DefendedClassifier,
    data: ImageData,
    scenarios: Mapping[str, Scenario],
    device: torch.device,
    telling: Telling,
) -> Results:
    """Everything from the first question to the results."""
    first = data.first_test_batch()
    target.cpu()
    check_classes(target, first.images, data.facts().num_classes)
    settle(target, first.images, first.indices, plan.seed)
    unfit = {
        name: "the attacker has no images to train a model on"
        for each in plan.suites
        for name in suite(each)
        if name not in scenarios
    } | left_out(plan.suites, plan.asked, target, data)
    for name, why in unfit.items():
        telling.say(f"left out: {name}, because {why}")
    attacks = {name: each for name, each in scenarios.items() if name not in unfit}
    refuse_few_classes(attacks, data.facts().num_classes)
    kind = device.type if device.type in ("cpu", "cuda", "mps") else "auto"
    number = 1 if device.index is None else [device.index]
    trainer = trainer_from(
        {
            "accelerator": kind if kind != "cuda" else "gpu",
            "devices": 1 if kind == "cpu" else number,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        },
        logger=False,
        enable_checkpointing=False,
    )
    name = path_of(type(target.classifier)).rpartition(".")[2]
    subject = Subject(target, name, data, unfit)
    precisions = precisions_of(plan, subject, attacks, device, telling.say)
    attack(plan, subject, attacks, precisions, trainer, telling, write_report)
    return read_results(plan.output)


def _target(
    model: nn.Module | Callable[[Tensor], Any], defense: Defense | None
) -> DefendedClassifier:
    """The model behind the defense, if there is one."""
    if not isinstance(model, DefendedClassifier):
        return DefendedClassifier(defense, as_module(model))
    if defense is not None:
        raise UserError("defense: the model has one already: give its classifier")
    return model


def _scenarios(
    attacks: Attacks | None, suites: Sequence[str], threat: Threat | None
) -> tuple[dict[str, Scenario], list[str]]:
    """Attacks by name in their order, in the threat, and which of them were asked for."""
    if isinstance(attacks, str):
        attacks = [attacks]
    said = attacks if isinstance(attacks, Mapping) else {stem(each): each for each in attacks or ()}
    asked = {name: _scenario(name, each) for name, each in said.items()}
    from_suites = {
        name: _preset(name)
        for name in dict.fromkeys(name for each in suites for name in suite(each))
        if name not in asked and not _needs_training(name)
    }
    every = from_suites | asked
    if threat is None:
        return every, [*asked]
    return {
        name: replace(each, attack=each.attack.within(threat)) for name, each in every.items()
    }, [*asked]


def _scenario(name: str, said: str | Attack | Scenario) -> Scenario:
    """An attack ready to run, of whatever stands for it."""
    if isinstance(said, Scenario):
        return said
    if isinstance(said, Attack):
        return Scenario(said, Target())
    if _needs_training(said):
        raise UserError(
            f"attacks: {said} trains models of the attacker's own, for which it needs training"
            " images: take evaluate.py with --data"
        )
    return _preset(said)


def _preset(name: str) -> Scenario:
    (node,) = attack_nodes([name], option="attacks").values()
    return scenario(node, stem(name), "attacks")


def _needs_training(name: str) -> bool:
    return any(map(surrogates_in, attack_nodes([name], option="attacks").values()))


def _survivors(said: bool | None, suites: Sequence[str]) -> bool:
    """Whether broken images are spared: as said, or as a suite has it."""
    if said is not None:
        return said
    return any(suite_settings(name).get("survivors", False) for name in suites)


def _data(
    images: Any, labels: Tensor | None, count: int | None, target: nn.Module, batch_size: int
) -> ImageData:
    """The images as a data module that is set up for "test"."""
    if isinstance(images, ImageData):
        if labels is not None:
            raise UserError("labels: the data set brings labels of its own: leave these out")
        images.prepare_data()
        if count is not None:
            images.limit_test(count, images.seed)
        data = images
    else:
        pictures, classes = collected(images, labels, count)
        few = pictures[:1].float() / (255 if pictures.dtype == torch.uint8 else 1)
        number = classes_of(target, few.to(_device(target)))
        data = GivenImages(pictures, classes, number, batch_size=batch_size)
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
