"""Callbacks: robust accuracy, pictures and the dashboard, during training."""

from robusttrain.callbacks.dashboard import Dashboard, flat
from robusttrain.callbacks.pictures import Pictures
from robusttrain.callbacks.robust_accuracy import RobustAccuracy

__all__ = ["Dashboard", "Pictures", "RobustAccuracy", "flat"]
