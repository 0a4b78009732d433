"""Defenses: input transformations before a classifier.

A defense is an ``nn.Module`` from images (B, C, H, W) to images, with its randomness passed in. A
new defense is a file here with a subclass of ``Defense``, and a YAML in ``configs/defense/``.
"""

from robusttrain.defenses.adversarial_transform import AdversarialTransform
from robusttrain.defenses.chain import Chain
from robusttrain.defenses.fixed_pattern import FixedResizePad
from robusttrain.defenses.random_resize_pad import RandomResizePad
from robusttrain.models.defense import Defense

__all__ = ["AdversarialTransform", "Chain", "Defense", "FixedResizePad", "RandomResizePad"]
