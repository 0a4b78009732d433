"""RobustBench's networks beside our data and threats: what one is for, and what it is used on."""

from __future__ import annotations

import logging
from typing import Any

from robusttrain.config.origins import ZOOS
from robusttrain.core.errors import UserError
from robusttrain.core.parts import class_name
from robusttrain.models.robustbench_classifier import CLASSES

_log = logging.getLogger(__name__)

Node = dict[str, Any]

#: Our data sets that the zoo has networks for.
DATASETS = {
    "robusttrain.data.CIFAR10": "cifar10",
    "robusttrain.data.CIFAR100": "cifar100",
    "robusttrain.data.ImageNet": "imagenet",
}
#: Norms of our threats, by the zoo's names.
NORMS = {"linf": "Linf", "l2": "L2"}


def fit_to_zoo(model: Node, data: Node, norm: str | None, classes: int) -> None:
    """Fill, in place, what RobustBench sorts its networks by, from the data set and the threat; say
    what is different and what cannot be known. Other networks are left alone.

    Args:
        model: node of the network.
        data: node of the data set.
        norm: of the attacks' threats; None where there are none, or several.
        classes: K of the data.

    Raises:
        UserError: a network for another data set.
    """
    if model["class_path"] != ZOOS["robustbench"][0]:
        return
    arguments = model.setdefault("init_args", {})
    where, here = f"robustbench:{arguments.get('name')}", DATASETS.get(data["class_path"])
    by_classes = {count: name for name, count in CLASSES.items()}
    chosen = arguments.get("dataset") or here or by_classes.get(classes)
    kind = class_name(data["class_path"])
    theirs = data["class_path"].startswith("robusttrain.data.") and kind != "ImageFolder"
    if chosen is not None and (here or theirs) and here != chosen:
        raise UserError(
            f"--model {where}: is looked up among networks for {chosen}, and --data is {kind}:"
            f" change --data{'' if here is None else f', or --model.dataset {here}'}"
        )
    if chosen is not None and here is None:
        _log.info(
            "%s: trained on %s; whether %s holds such images, its classes in the same order, is"
            " not known",
            where,
            chosen,
            (data.get("init_args") or {}).get("root", kind),
        )
    ours = NORMS.get(norm or "")
    threat = arguments.get("threat_model") or ours or "Linf"
    if ours is not None and threat != ours:
        _log.info("%s: trained against %s, and attacked here in %s", where, threat, ours)
    elif arguments.get("threat_model") is None:
        why = "as the attacks are" if ours else "since nothing else was said"
        _log.info("%s: looked up among networks against %s, %s", where, threat, why)
    arguments |= {"dataset": chosen, "threat_model": threat}
