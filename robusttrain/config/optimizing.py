"""``--optimizer`` and ``--schedule``: short names of what stands under ``--training``; and
``--logger``, which may be said several times.
"""

from __future__ import annotations

from collections.abc import Sequence

from robusttrain.config.command_line import take
from robusttrain.config.presets import OF_OPTIMIZERS

#: How settings of RobustTraining are called behind ``--optimizer.``; all others are the optimizer's
#: own arguments.
OF_OPTIMIZER = {
    "lr": "learning_rate",
    "learning_rate": "learning_rate",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "weight_decay": "weight_decay",
}
#: The same behind ``--schedule.``
OF_SCHEDULE = {name: name for name in ("milestones", "warmup", "warmup_epochs")}
#: What leaves to an optimizer the settings that belong to it.
LEFT_TO_IT = {name: "false" if name == "nesterov" else "null" for name in OF_OPTIMIZERS}


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """A command line with ``--optimizer adamw`` as ``--training.optimizer adamw``,
    ``--optimizer.lr`` and ``--training.optimizer.lr`` as ``--training.learning_rate``, and so on;
    several ``--logger`` as one.
    """
    loggers, rest = take(arguments, lambda option: option == "--logger")
    joined = [f"--logger={','.join(value.strip('[]') for _, value in loggers)}"] if loggers else []
    return [*(_spelt_out(argument) for argument in rest), *joined]


def _spelt_out(argument: str) -> str:
    option, equals, value = argument.partition("=")
    for kind, own in (("optimizer", OF_OPTIMIZER), ("schedule", OF_SCHEDULE)):
        if option == f"--{kind}":
            return f"--training.{kind}{equals}{value}"
        for prefix in (f"--{kind}.", f"--training.{kind}."):
            if not option.startswith(prefix):
                continue
            name = option.removeprefix(prefix)
            return f"--training.{own.get(name, f'{kind}_options.{name}')}{equals}{value}"
    return argument


def optimizer_named(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The optimizer that a command line, spelt out, names last, if any; and the line without what
    it says of optimizers.
    """
    about = "--training.optimizer"
    said_of_it, rest = take(
        arguments, lambda option: option == about or option.startswith(f"{about}_options")
    )
    names = [value for option, value in said_of_it if option == about]
    return (names[-1] if names else None), rest


def left_to_it(arguments: Sequence[str]) -> list[str]:
    """Options that leave to a new optimizer what a command line, spelt out, does not say of it."""
    said = [argument.partition("=")[0] for argument in arguments]
    return [
        f"--training.{name}={value}"
        for name, value in LEFT_TO_IT.items()
        if not any(each.startswith(f"--training.{name}") for each in said)
    ]
