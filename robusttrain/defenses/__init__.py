"""Defenses: input transformations before a classifier.

A defense is an ``nn.Module`` from images (B, C, H, W) to images, with its randomness passed in. A
new defense is a file here with a subclass of ``Defense``, and a YAML in ``configs/defense/``.
"""

from robusttrain.defenses.adversarial_transform import AdversarialTransform
from robusttrain.defenses.anti_adversary import AntiAdversary
from robusttrain.defenses.bit_depth import BitDepth
from robusttrain.defenses.chain import Chain
from robusttrain.defenses.crop_rescale import CropRescale
from robusttrain.defenses.denoiser import Denoiser
from robusttrain.defenses.diffusion import Diffusion
from robusttrain.defenses.fixed_pattern import FixedResizePad
from robusttrain.defenses.gaussian_noise import GaussianNoise
from robusttrain.defenses.hedge import Hedge
from robusttrain.defenses.jpeg import JPEG, DifferentiableJPEG
from robusttrain.defenses.median import MedianSmoothing
from robusttrain.defenses.random_resize_pad import RandomResizePad
from robusttrain.defenses.total_variation import TotalVariation
from robusttrain.defenses.vote import Vote
from robusttrain.models.defense import Defense

__all__ = [
    "JPEG",
    "AdversarialTransform",
    "AntiAdversary",
    "BitDepth",
    "Chain",
    "CropRescale",
    "Defense",
    "Denoiser",
    "DifferentiableJPEG",
    "Diffusion",
    "FixedResizePad",
    "GaussianNoise",
    "Hedge",
    "MedianSmoothing",
    "RandomResizePad",
    "TotalVariation",
    "Vote",
]
