"""Callbacks during training.

Robust accuracy, overfitting, pace, a stated time, progress, pictures, averaged weights,
checkpoints, the dashboard.
"""

from robusttrain.training.callbacks.averaging import EMA, SWA
from robusttrain.training.callbacks.dashboard import Dashboard
from robusttrain.training.callbacks.in_time import InTime
from robusttrain.training.callbacks.kept import Kept
from robusttrain.training.callbacks.overfitting import Overfitting
from robusttrain.training.callbacks.pace import Pace
from robusttrain.training.callbacks.patience import Patience
from robusttrain.training.callbacks.pictures import Pictures
from robusttrain.training.callbacks.progress import ProgressLines
from robusttrain.training.callbacks.robust_accuracy import RobustAccuracy
from robusttrain.training.callbacks.undo import Undo
from robusttrain.training.callbacks.validated import Validated, of_last_epoch

__all__ = [
    "EMA",
    "SWA",
    "Dashboard",
    "InTime",
    "Kept",
    "Overfitting",
    "Pace",
    "Patience",
    "Pictures",
    "ProgressLines",
    "RobustAccuracy",
    "Undo",
    "Validated",
    "of_last_epoch",
]
