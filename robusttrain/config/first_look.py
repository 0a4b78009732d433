"""What is evaluated before anything is trained: a model that comes with the package."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from robusttrain.config.command_line import values_of

_log = logging.getLogger(__name__)

#: Images, and those of the audit, of a first look at a packaged model that nobody asked for.
FIRST_LOOK = {"images": 30, "audit_images": 8}


def asks_for_others(arguments: Sequence[str], nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a command line names data other than the packaged model's, or the folder of its
    checkpoints: what it means then is no packaged model.
    """
    if values_of(arguments, "--checkpoints") or any("checkpoints" in node for node in nodes):
        return True
    data = [*values_of(arguments, "--data"), *(node["data"] for node in nodes if "data" in node)]
    return any(value != "digits" for value in data)


def first_look(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of sizes where a packaged model is evaluated because nothing was trained;
    which model and which sizes nobody chose is said.

    Args:
        values: fields of the plan.
    """
    unsaid = {key: size for key, size in FIRST_LOOK.items() if values[key] is None}
    if not values["audit"]:
        unsaid.pop("audit_images", None)
    sizes = " ".join(f"--{key} {size}" for key, size in unsaid.items())
    _log.info(
        "nothing trained under %s: taking %s, a model that comes with the package%s; --checkpoint"
        " NAME takes another, --list shows all",
        *(values["checkpoints"], values["checkpoint"]),
        f", for a first look with {sizes}" if sizes else "",
    )
    return unsaid
