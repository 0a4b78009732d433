"""robusttrain: trains robust image classifiers and attacks them honestly.

Data flows one way: data -> defended classifier -> attack -> score -> report. Start at ``attacks/`` to read how an
attack is put together, at ``defenses/`` for what stands before a classifier, at ``evaluation/`` for how a figure
comes about.
"""

from robusttrain.checkpoints import load
from robusttrain.defended import DefendedClassifier
from robusttrain.errors import OptionError, UserError
from robusttrain.models import fast_copy
from robusttrain.rng import Rng

__all__ = ["DefendedClassifier", "OptionError", "Rng", "UserError", "fast_copy", "load"]
__version__ = "0.1.0"
