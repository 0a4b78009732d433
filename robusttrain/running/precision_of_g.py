"""``--defense.precision auto``: in which precision g differentiates f_b, settled by a training.

The checkpoint has what was chosen, since g's images, and all figures with them, depend on it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robusttrain.config.build import build
from robusttrain.core.errors import UserError
from robusttrain.core.telling import Say
from robusttrain.evaluation.precision import measure_speeds
from robusttrain.models.foreign import load_weights
from robusttrain.running.f_b import transformations


def as_began(recipe: dict[str, Any], old: dict[str, Any]) -> None:
    """Let a run that goes on keep the precisions that it began with, in place of auto."""
    pairs = zip(
        transformations(recipe["defense"]), transformations(old.get("defense")), strict=False
    )
    for now, began in pairs:
        if now.get("precision") == "auto":
            now["precision"] = began.get("precision", "float32")


def is_open(defense: dict[str, Any] | None) -> bool:
    """Whether the precision of some g under a node is still auto."""
    return any(each.get("precision") == "auto" for each in transformations(defense))


def settle(
    defense: dict[str, Any] | None,
    recipe: dict[str, Any] | None,
    images: Tensor,
    processes: int,
    say: Say,
) -> None:
    """Turn every auto under ``defense`` and ``recipe``, its copy for checkpoints, into the faster
    precision on this machine, or into that which the recipe has.

    Args:
        defense: configuration node; changed in place.
        recipe: the node that checkpoints hold, likewise.
        images: (B, C, H, W) in [0, 1], a few, on the device of the training.
        processes: of the training.
        say: takes lines.

    Raises:
        UserError: several processes, which might come to different results.
    """
    for arguments, kept in zip(transformations(defense), transformations(recipe), strict=True):
        if arguments.get("precision") != "auto":
            continue
        if kept["precision"] == "auto":
            if processes > 1:
                raise UserError(
                    f"--defense.precision auto: {processes} processes may measure different"
                    " things: give float32 or bfloat16"
                )
            f_b = build(arguments["model"], "defense.model").to(images.device).eval()
            if arguments.get("weights"):
                load_weights(f_b, arguments["weights"], arguments.get("weights_which"))
            speeds = measure_speeds(f_b, images)
            kept["precision"] = speeds.better
            say(f"precision: g differentiates f_b in {speeds.better}, since {speeds}")
        arguments["precision"] = kept["precision"]


def refuse_auto(defense: dict[str, Any]) -> None:
    """Raise UserError for a g without a training whose precision nobody has settled."""
    if is_open(defense):
        raise UserError(
            "--defense.precision auto: a training settles it, and here is none: give float32 or"
            " bfloat16 (g's images differ between them)"
        )
