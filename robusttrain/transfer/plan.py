"""The plan of a measurement of transfer: everything that its figures depend on, in plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from robusttrain.core.checked import checked
from robusttrain.core.errors import UserError, at_least

#: A part of the configuration: {"class_path": ..., "init_args": {...}}.
Node = dict[str, Any]
PRECISIONS = ("float32", "bfloat16")
FUSIONS = ("logits", "probabilities", "losses")


@checked
@dataclass(frozen=True)
class TransferPlan:
    """The models that adversarial images are crafted and tested on, and how.

    Args:
        models: two or more: model presets or YAML files with weights, checkpoints of train.py,
            models of the package, timm:NAME (pretrained).
        attacks: nodes of the attacks by name.
        data: node of the data set.
        targets: models that are tested; default: all.
        sources: models that are crafted on; default: all.
        held_out: craft also on all models but one, as one ensemble.
        fuse: how an ensemble becomes one model: logits, probabilities or losses.
        trust: packages that a checkpoint may name.
        epsilon: radius of the threat, for every attack.
        images: size of a seeded subset of the test images.
        draws: fresh draws of a random target for each image.
        precision: in which attacks differentiate: float32 or bfloat16.
        seed: of every random number.
        crafted: folder for crafted images.
        output: folder for results.json and pictures.

    Raises:
        UserError: values that cannot work, alone or together.
    """

    models: list[str]
    attacks: dict[str, Node]
    data: Node
    targets: list[str] | None = None
    sources: list[str] | None = None
    held_out: bool = False
    fuse: str = "logits"
    trust: list[str] = field(default_factory=list)
    epsilon: float | None = None
    images: int | None = None
    draws: int = 10
    precision: str = "float32"
    seed: int = 0
    crafted: str = "results/crafted"
    output: str = "results/transfer"

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise UserError(
                f"--models {' '.join(self.models)}: name two models or more to measure transfer"
            )
        at_least("--draws", self.draws, 1)
        at_least("--seed", self.seed, 0)
        for option, value, choices in (
            ("precision", self.precision, PRECISIONS),
            ("fuse", self.fuse, FUSIONS),
        ):
            if value not in choices:
                raise UserError(f"--{option} {value}: must be one of {', '.join(choices)}")
        if self.held_out and len(self.models) < 3:
            raise UserError(
                f"--held_out true: needs three models or more, --models names {len(self.models)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
