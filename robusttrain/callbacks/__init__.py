"""Callbacks during training.

Robust accuracy, overfitting, pace, progress, pictures, averaged weights, the dashboard.
"""

from robusttrain.callbacks.averaging import SWA
from robusttrain.callbacks.dashboard import Dashboard, flat
from robusttrain.callbacks.overfitting import Overfitting
from robusttrain.callbacks.pace import Pace
from robusttrain.callbacks.pictures import Pictures
from robusttrain.callbacks.progress import ProgressLines
from robusttrain.callbacks.robust_accuracy import RobustAccuracy

__all__ = [
    "SWA",
    "Dashboard",
    "Overfitting",
    "Pace",
    "Pictures",
    "ProgressLines",
    "RobustAccuracy",
    "flat",
]
