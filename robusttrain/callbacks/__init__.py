"""Callbacks during training: robust accuracy, overfitting, pace, pictures, averaged weights, the dashboard."""

from robusttrain.callbacks.averaging import SWA
from robusttrain.callbacks.dashboard import Dashboard, flat
from robusttrain.callbacks.overfitting import Overfitting
from robusttrain.callbacks.pace import Pace
from robusttrain.callbacks.pictures import Pictures
from robusttrain.callbacks.robust_accuracy import RobustAccuracy

__all__ = ["SWA", "Dashboard", "Overfitting", "Pace", "Pictures", "RobustAccuracy", "flat"]
