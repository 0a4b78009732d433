"""From a plan to the model under attack and to its data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

from robusttrain.config.attacks import checked
from robusttrain.config.build import (
    build,
    build_defended,
    check_pretrained,
    fit_to_data,
    other_pictures,
)
from robusttrain.config.checkpoints import classes_beside, load, read_recipe
from robusttrain.config.parts import with_own_defaults
from robusttrain.config.zoo import fit_to_zoo
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.parts import class_name, flat
from robusttrain.data import ImageData
from robusttrain.data.notes import note
from robusttrain.defenses import Defense
from robusttrain.evaluation import need_two
from robusttrain.evaluation.plan import PLACES, EvaluationPlan, Node
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.foreign import load_weights
from robusttrain.storage import packaged


def build_data(plan: EvaluationPlan) -> ImageData:
    """The images of a plan, not read yet."""
    data: ImageData = build(plan.data, "data", kind=ImageData)
    if plan.split == "validation":
        data.attack_validation()
    if plan.images is not None:
        data.limit_test(plan.images, plan.seed, plan.at_most)
    return data


def build_target(
    plan: EvaluationPlan, data: ImageData, find_networks: Callable[[Node], None]
) -> tuple[DefendedClassifier, str]:
    """The target in evaluation mode, and how the report names it.

    Args:
        plan: what is evaluated.
        data: its images.
        find_networks: fills in weights of networks that a defense's node does not name.

    Raises:
        UserError: weights that do not fit, classes that do not match, a network of the defense
            without weights.
    """
    model, defense = copy.deepcopy(plan.model), copy.deepcopy(plan.defense)
    recipe = {} if plan.checkpoint is None else read_recipe(plan.checkpoint)
    # A checkpoint's weights come with the order that they were trained in, however they are named.
    beside = [] if plan.weights is None else classes_beside(plan.weights)
    if classes := recipe.get("classes") or beside:
        data.number_as(classes)
    facts = data.facts()
    if plan.checkpoint is not None:
        own = recipe.get("defense")
        recipe |= {"model": model, "defense": defense}
        count = (model.get("init_args") or {}).get("num_classes", facts.num_classes)
        if count != facts.num_classes:
            raise UserError(
                f"{plan.checkpoint} has {count} classes, the data set {facts.num_classes}: change"
                " --data"
            )
        name = plan.checkpoint
        name = packaged.card(name).label if packaged.is_packaged(name) else name
        if own is not None or defense is None:
            return load(plan.checkpoint, plan.trust, recipe), name + _changed(own, defense)
        # One that is put before a network without any has its weights elsewhere.
        bare = load(plan.checkpoint, plan.trust, {**recipe, "defense": None})
        fit_to_data(defense, facts, "defense")
        find_networks(defense)
        target = DefendedClassifier(build(defense, "defense", kind=Defense), bare.classifier)
        target.class_names = bare.class_names
        return target.eval(), behind(target, name)
    norms = {checked(node, name).attack.threat.norm for name, node in plan.attacks.items()}
    fit_to_zoo(model, plan.data, norms.pop() if len(norms) == 1 else None, facts.num_classes)
    need_two(facts.num_classes)
    fit_to_data(model, facts, "model")
    fit_to_data(defense, facts, "defense")
    if defense is not None:
        find_networks(defense)
    target = build_defended(model, defense)
    name = class_name(model["class_path"])
    if plan.weights is None:
        check_pretrained(target.classifier, facts)
        if others := other_pictures(target.classifier, facts.image_size, data.preparation):
            note(data.notes, others)
        own_name = f"{name} {getattr(target.classifier, 'name', '')}".rstrip()
        return target.eval(), behind(target, own_name)
    try:
        load_weights(target.classifier, plan.weights, plan.weights_which, "--weights")
    except OptionError as error:
        raise _of_other_classes(error, facts.num_classes) from error
    return target.eval(), behind(target, f"{name} {plan.weights}")


def behind(target: DefendedClassifier, name: str) -> str:
    """The name of a classifier, and of the defense that stands before it, if any: figures of both
    together are none of the classifier alone.
    """
    if target.defense is None:
        return name
    return f"{name} behind {type(target.defense).__name__}"


def _changed(own: Node | None, defense: Node | None) -> str:
    """What a name says besides of a checkpoint whose own defense has other values."""
    # What neither says has its default.
    said = (int, float, str, bool, type(None))
    before, now = (flat(with_own_defaults(each or {}, said), "defense") for each in (own, defense))
    values = [f"{key} {to}" for key, to in now.items() if key in before and before[key] != to]
    return f" with {', '.join(values)}" if values else ""


def _of_other_classes(error: OptionError, classes: int) -> OptionError:
    """The error with the number of the data's classes, where a layer of as many does not fit."""
    sizes = re.findall(r"is \((\d+)[^)]*\) in the file, \((\d+)[^)]*\) in the model", error.fix)
    # Where both have as many classes, something else is of another size.
    others = [there for there, here in sizes if int(here) == classes and there != here]
    if not others or "does not fit" not in error.fix:
        return error
    fix = (
        f"{error.fix}; the data set has {classes} classes: if the model was trained on others, name"
        " all of them in their order with --data.classes FILE"
    )
    return OptionError(error.option, error.value, fix)


def training_data(plan: EvaluationPlan) -> Node:
    """The configuration of the data that the target was trained on, from where they lie now.

    Batches are those of that training: what an attacker trains must not depend on the batches of
    an evaluation.
    """
    if plan.checkpoint is None:
        return plan.data
    then = read_recipe(plan.checkpoint)["data"]
    if then["class_path"] != plan.data["class_path"]:
        return plan.data
    places = {
        key: value for key, value in (plan.data.get("init_args") or {}).items() if key in PLACES
    }
    return {**then, "init_args": {**(then.get("init_args") or {}), **places}}
