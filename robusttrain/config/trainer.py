"""Lightning's Trainer: its options, and the object."""

from __future__ import annotations

import atexit
import inspect
from typing import Any, get_args

from jsonargparse import ArgumentParser

from robusttrain.core.errors import UserError, first_line
from robusttrain.core.stopping import Watched
from robusttrain.core.telling import Say, on_terminal, silence

#: Trainer options that this framework sets itself.
OWN_TRAINER_OPTIONS = {
    "logger",
    "callbacks",
    "use_distributed_sampler",
    "enable_checkpointing",
    "inference_mode",
}
#: Lightning's other names of a precision.
PRECISIONS = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
PRECISIONS |= {"64": "64-true"}


def add_trainer(
    parser: ArgumentParser, defaults: dict[str, Any], only: set[str] | None = None
) -> None:
    """Add ``--trainer.*``: Lightning's Trainer, but for what this framework sets itself; or
    ``only`` some of it.
    """
    from pytorch_lightning import Trainer

    everything = inspect.signature(Trainer).parameters
    skip = OWN_TRAINER_OPTIONS if only is None else {*everything} - only
    # A number of batches or a share of them, 1 or 1.0. typing keeps one object for Union[int,
    # float] and Union[float, int], whichever came first in this process, and jsonargparse tries its
    # members in that order: 1 could become 1.0. A union written with | has its own order.
    either = {
        name for name, item in everything.items() if {int, float} <= {*get_args(item.annotation)}
    } - skip
    parser.add_class_arguments(Trainer, "trainer", skip={*skip, *either}, instantiate=False)
    for name in sorted(either):
        optional = type(None) in get_args(everything[name].annotation)
        parser.add_argument(
            f"--trainer.{name}",
            type=(int | float | None) if optional else (int | float),
            default=everything[name].default,
            help=(
                "as Lightning's Trainer has it: where batches are counted, 1 is one of them and"
                " 1.0 all"
            ),
        )
    parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})


def trainer_from(settings: dict[str, Any], say: Say = silence, **own: Any) -> Any:
    """Lightning's Trainer from ``--trainer.*`` options and ours; what it refuses becomes one line.

    Args:
        settings: the options.
        say: takes lines of progress, where there is no terminal for a bar.
        own: further arguments of the Trainer.
    """
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import RichProgressBar
    from pytorch_lightning.plugins.io import TorchCheckpointIO
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from robusttrain.training.callbacks import ProgressLines
    from robusttrain.training.whole_files import WholeFiles

    bar: list[Any] = []
    if settings.get("enable_progress_bar") is not False:
        # A bar needs a terminal: in a file it is a page of carriage returns.
        bar = [RichProgressBar() if on_terminal() else ProgressLines(say)]
    own["callbacks"] = [*own.get("callbacks", []), *bar]
    try:
        trainer = Trainer(**settings, **own, use_distributed_sampler=False)
    except (
        *(MisconfigurationException, ValueError, TypeError, ImportError),
        *(OSError, RuntimeError),
    ) as error:
        # Of the cluster's environment, too: a file that it names, numbers of tasks
        raise UserError(f"--trainer: {first_line(error)}") from error
    _tell_of_the_dead(trainer, say)
    atexit.unregister(leave_group)
    atexit.register(leave_group)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # no strategy's own, no plugin
        trainer.strategy.checkpoint_io = WholeFiles()
    return trainer


def _tell_of_the_dead(trainer: Any, say: Say) -> None:
    """Let Lightning look after the processes that it starts as `Watched` ones."""
    launcher = trainer.strategy.launcher
    start = getattr(launcher, "_call_children_scripts", None)
    if start is None:  # nothing is started from here
        return

    def started() -> None:
        start()
        count = len(launcher.procs) + 1
        launcher.procs = [
            Watched(process, f"process {number} of {count}", say)
            for number, process in enumerate(launcher.procs, start=2)
        ]

    launcher._call_children_scripts = started


def leave_group() -> None:
    """Leave the group of processes that shared a run, before this process ends.

    Threads of gloo's group that are still there then may abort a process whose work is done, and
    the first process takes that for a failure. Lightning leaves groups of NCCL alone.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
