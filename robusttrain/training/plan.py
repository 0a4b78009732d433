"""The plan of a training: everything that the weights depend on, in plain values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from robusttrain.core.checked import checked
from robusttrain.core.errors import (
    OptionError,
    UserError,
    at_least,
    below_one,
    first_line,
    one_of,
    under,
)
from robusttrain.evaluation.compiling import COMPILE, Compile

#: A part of the configuration: {"class_path": ..., "init_args": {...}}.
Node = dict[str, Any]

#: Where curves may go.
LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")


@checked
@dataclass(frozen=True)
class Averaging:
    """A mean of the weights (SWA).

    Args:
        start: first epoch of the mean; null: none.
        batches: training batches for its batch-norm statistics.
    """

    start: int | None = None
    batches: int = 20


@checked
@dataclass(frozen=True)
class Watching:
    """Attacks at validation.

    Args:
        attacks: presets, repeatable; default: pgd-quick, or bpda-i-quick where the defense has no
            useful gradient.
        epsilon: radius of their threat; default: the presets' own.
        every: epochs between two evaluations; 0: never.
        images: validation images that are attacked.
        draws: draws of a random defense that score an image.
    """

    attacks: list[str] | str | None = None
    epsilon: float | None = None
    every: int = 1
    images: int = 128
    draws: int = 3

    @property
    def names(self) -> list[str]:
        """The presets that were named."""
        if self.attacks is None:
            return []
        return [self.attacks] if isinstance(self.attacks, str) else list(self.attacks)


@checked
@dataclass(frozen=True)
class Panel:
    """Pictures in TensorBoard.

    Args:
        images: images of the picture panel; 0: no pictures.
        every: epochs between two picture panels.
    """

    images: int = 4
    every: int = 5


@checked
@dataclass(frozen=True)
class Guard:
    """What counts as overfitting.

    Args:
        drop: fall of robust accuracy that is catastrophic.
        fall: fall that is robust overfitting.
        undo: go on from the best epoch's weights, with twice the inner steps, where catastrophic
            overfitting is seen.
    """

    drop: float = 0.2
    fall: float = 0.05
    undo: bool = False


@checked
@dataclass(frozen=True)
class Extra:
    """Further training images.

    Args:
        root: folder of further training images; null: none.
        share: share of each batch that comes from them.
    """

    root: str | None = None
    share: float = 0.5


@checked
@dataclass(frozen=True)
class TrainingPlan:
    """What is trained, how it is trained and watched, and where checkpoints and logs go.

    The command line, YAML and Python all end in a plan. A plan is complete and plain, and is
    written into the checkpoint.

    Args:
        model: node of the network f_a.
        data: node of the data set.
        training: arguments of `robusttrain.training.RobustTraining`, without the model.
        trainer: options of Lightning's Trainer.
        defense: node of the defense before f_a; None for none.
        seed: of every random number.
        name: of the run; default: data-defense-model.
        checkpoints: folder for checkpoints.
        logs: folder for curves and pictures.
        logger: what curves are written for: tensorboard, csv, wandb, mlflow, or several of them,
            separated by commas.
        ckpt_path: resume from a file; 'last': newest run.
        ema: decay of averaged weights (0.999 say); 0 for none.
        swa: a mean of the weights over epochs.
        monitor: what 'best' means; default: robust/worst_case where the objective attacks, else
            val/accuracy.
        early_stopping: epochs without a better --monitor; 0: never.
        robust: attacks at validation.
        pictures: pictures in TensorBoard.
        guard: what counts as overfitting.
        extra: further training images.
        estimate: say what training would cost, and stop.
        f_b_training: training preset for an f_b, if one is needed.
        compile: whether training steps take gradients of compiled networks (torch.compile, on GPUs
            CUDA graphs as well), inner attacks and g among them; auto: where it was measured to
            save time here. Validation is not compiled.

    Raises:
        OptionError: a value that cannot work.
    """

    model: Node
    data: Node
    training: dict[str, Any]
    trainer: dict[str, Any]
    defense: Node | None = None
    seed: int = 0
    name: str | None = None
    checkpoints: str = "checkpoints"
    logs: str = "logs"
    logger: str | list[str] = "tensorboard"
    ckpt_path: str | None = None
    ema: float = 0.0
    swa: Averaging = field(default_factory=Averaging)
    monitor: str | None = None
    early_stopping: int = 0
    robust: Watching = field(default_factory=Watching)
    pictures: Panel = field(default_factory=Panel)
    guard: Guard = field(default_factory=Guard)
    extra: Extra = field(default_factory=Extra)
    estimate: bool = False
    f_b_training: str = "f_b"
    compile: Compile = "off"

    def __post_init__(self) -> None:
        at_least("--seed", self.seed, 0)
        if self.seed >= 2**32:
            raise OptionError("--seed", self.seed, "must lie below 2^32, as numpy's seeds do")
        below_one("--ema", self.ema)
        one_of("--compile", self.compile, COMPILE)
        at_least("--early_stopping", self.early_stopping, 0)
        at_least("--robust.every", self.robust.every, 0)
        for name in self.loggers or [""]:
            if name not in LOGGERS:
                near = difflib.get_close_matches(name, LOGGERS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LOGGERS)}"
                raise OptionError("--logger", name, f"there is no such logger; {hint}")
        if self.swa.start is not None and self.ema:
            raise OptionError(
                "--swa.start", self.swa.start, "excludes --ema: choose one mean of the weights"
            )

    @property
    def loggers(self) -> list[str]:
        """The loggers that were named, each once, in their order."""
        names = self.logger.split(",") if isinstance(self.logger, str) else self.logger
        return [*dict.fromkeys(name.strip() for name in names)]

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the plan again."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingPlan:
        """The plan that ``to_json`` wrote.

        Raises:
            UserError: something is missing, or unknown here.
        """
        inner = {
            "swa": Averaging,
            "robust": Watching,
            "pictures": Panel,
            "guard": Guard,
            "extra": Extra,
        }
        if unknown := sorted(set(content) - {each.name for each in fields(cls)}):
            raise UserError(f"plan: {unknown[0]} is unknown to this version of robusttrain")
        try:
            whole = {
                key: _part(inner[key], key, value) if key in inner else value
                for key, value in content.items()
            }
            return cls(**whole)
        except TypeError as error:
            raise UserError(f"plan: {first_line(error)}") from error


def _part(kind: type, key: str, value: Mapping[str, Any]) -> Any:
    """A part of a plan; errors name its options."""
    with under(key):
        return kind(**value)
