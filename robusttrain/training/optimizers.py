"""What the weights follow: torch's SGD, or any optimizer of timm's factory by its name.

SGD is torch's, with weight decay on all trainable parameters. The others are made as timm's own
training makes them: biases, scales of normalisation and what a network names itself (positions of
a vision transformer) do not decay.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim import Optimizer

from robusttrain.core.errors import OptionError, first_line
from robusttrain.models import TimmClassifier, TorchvisionClassifier

_log = logging.getLogger(__name__)

#: Figures of SGD where none are given.
SGD = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def check_name(optimizer: str) -> None:
    """Raise OptionError unless it is "sgd", or an optimizer of timm's that takes plain steps."""
    names = [str(name) for name in list_optimizers()]
    if optimizer not in names:
        near = difflib.get_close_matches(optimizer, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.optim lists all: adamw, ..."
        raise OptionError("optimizer", optimizer, f"there is no such optimizer; {hint}")
    if get_optimizer_info(optimizer).second_order:
        raise OptionError(
            "optimizer", optimizer, "needs second derivatives, which nothing here computes: adamw"
        )


def settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training with the optimizer's own figures where none are given.

    Those of SGD are 0.1, 0.9 and 5e-4; those of another one are its class's defaults, and the log
    says which were taken.

    Args:
        settings: arguments of `robusttrain.training.RobustTraining`.

    Raises:
        OptionError: an unknown optimizer, or one that has no learning rate of its own.
    """
    optimizer = settings.get("optimizer", "sgd")
    check_name(optimizer)
    own: Mapping[str, float | None] = SGD if optimizer == "sgd" else _own_figures(optimizer)
    missing = {name: value for name, value in own.items() if settings.get(name) is None}
    if missing.get("learning_rate", 1.0) is None:
        fix = f"{optimizer} has none of its own: give a number"
        raise OptionError("learning_rate", None, fix)
    taken = [f"{name.replace('_', ' ')} {value:g}" for name, value in missing.items() if value]
    if optimizer != "sgd" and taken:
        _log.info(
            "optimizer %s: %s, its own defaults, since none is given", optimizer, ", ".join(taken)
        )
    return {**settings, **missing}


def _own_figures(optimizer: str) -> dict[str, float | None]:
    """What the class of an optimizer takes where nothing is said; None for what it does not
    have.
    """
    try:
        taken = inspect.signature(get_optimizer_class(optimizer, bind_defaults=False)).parameters
    except (ImportError, AssertionError) as error:  # a package or an accelerator is missing
        raise OptionError("optimizer", optimizer, first_line(error)) from error
    rate = taken["lr"].default
    decay = taken["weight_decay"].default if "weight_decay" in taken else 0.0
    # timm's factory gives 0.9, whatever the class's default
    momentum = 0.9 if get_optimizer_info(optimizer).has_momentum else None
    return {
        "learning_rate": float(rate) if isinstance(rate, int | float) and rate > 0 else None,
        "momentum": momentum,
        "weight_decay": float(decay or 0.0),
    }


def check_figures(settings: Mapping[str, Any]) -> None:
    """Raise OptionError for a figure that the optimizer does not take; settings as for `make`."""
    optimizer, options = settings["optimizer"], settings["optimizer_options"]
    for name in options:
        if name in ("lr", "weight_decay", "momentum", "nesterov"):
            shown = {"lr": "learning_rate"}.get(name, name)
            fix = f"has an option of its own: training.{shown}"
            raise OptionError(f"optimizer_options.{name}", options[name], fix)
    if optimizer == "sgd":
        if settings["nesterov"] and settings["momentum"] == 0:
            raise OptionError("nesterov", True, "needs a momentum above 0")
    elif settings["nesterov"]:
        raise OptionError("nesterov", True, f"goes with sgd; {optimizer} has no such option")
    elif settings["momentum"] is not None and not get_optimizer_info(optimizer).has_momentum:
        fix = f"{optimizer} has none: leave it out (--optimizer.betas, where it has those)"
        raise OptionError("momentum", settings["momentum"], fix)
    # Finds unknown options, and packages that are not there, before anything is trained.
    make(nn.Linear(2, 2), settings)


def make(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """The optimizer of a model's trainable parameters.

    Args:
        model: with at least one of them.
        settings: optimizer, learning_rate, momentum, nesterov, weight_decay, optimizer_options, as
            `settled` gives them.

    Raises:
        OptionError: the optimizer refuses an option, or needs what is not installed.
    """
    optimizer, options = settings["optimizer"], dict(settings["optimizer_options"])
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    momentum = {} if settings["momentum"] is None else {"momentum": settings["momentum"]}
    try:
        if optimizer == "sgd":
            trainable = [each for each in model.parameters() if each.requires_grad]
            nesterov = settings["nesterov"]
            return torch.optim.SGD(
                trainable, lr=rate, nesterov=nesterov, weight_decay=decay, **momentum, **options
            )
        groups = param_groups_weight_decay(model, decay, no_weight_decay_list=undecayed(model))
        groups = [group for group in groups if group["params"]]  # type: ignore[call-overload]
        return create_optimizer_v2(
            groups, optimizer, lr=rate, weight_decay=decay, **momentum, **options
        )
    except TypeError as error:
        # Python 3.13 goes on with what one may have meant.
        named = re.search(r"argument '([^']+)'", first_line(error))
        unknown = named[1] if named else ""
        if unknown not in options:
            raise
        raise OptionError(
            f"optimizer_options.{unknown}", options[unknown], f"{optimizer} has no such option"
        ) from error
    except (ValueError, AssertionError) as error:
        raise OptionError(
            "optimizer_options", options, f"{optimizer}: {first_line(error)}"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise OptionError("optimizer", optimizer, first_line(error)) from error


def undecayed(model: nn.Module) -> set[str]:
    """The names of parameters that networks of timm and torchvision inside of a model say must not
    decay.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, TimmClassifier | TorchvisionClassifier)
        for name in module.no_weight_decay()
    }
