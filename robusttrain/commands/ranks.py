"""Whether this process is one of several of a run, or only started beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from robusttrain.config.trainer import trainer_from
from robusttrain.core.console import console
from robusttrain.core.telling import first_process


def alone(settings: Mapping[str, Any] | None = None) -> None:
    """Let this process speak and write for itself, if its run has no other process.

    Slurm, Kubernetes and others number the tasks of a job (SLURM_PROCID, RANK, LOCAL_RANK), and
    Lightning takes the number for that of a process in a run. But each task may just as well carry
    out a command of its own, such as one seed of a sweep: it would print nothing, write no curves,
    and lay no claim to the folder that another task then writes into as well.

    Args:
        settings: ``--trainer.*`` options, which say how many processes the run has; None for a
            command that always has one.
    """
    if first_process():
        return
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    if settings is None or trainer_from({**settings, **quiet}, logger=False).world_size == 1:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        console.quiet = False
