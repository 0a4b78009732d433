"""Networks of RobustBench's zoo (Croce et al. 2021, RobustBench), by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from typing import Any, Literal

from torch import Tensor, nn

from robusttrain.core.checked import Count, checked
from robusttrain.core.errors import OptionError, UserError, first_line
from robusttrain.core.preparation import Preparation, preparation_as

#: Classes of the data sets that RobustBench has networks for.
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
#: Height and width of their images, as the zoo's networks take them.
SIZES = {"cifar10": 32, "cifar100": 32, "imagenet": 224}


@checked
class RobustBenchClassifier(nn.Module):
    """A trained network of the zoo; its normalisation, where it has one, is inside.

    Args:
        name: RobustBench's (``Standard``, ``Carmon2019Unlabeled``).
        dataset: what it was trained on; None takes it from the number of classes.
        threat_model: what it was trained against: the zoo is sorted by it; None for Linf.
        model_dir: folder of the zoo's files; what is not there is downloaded into it.
        num_classes: number of logits K.

    Attributes:
        trained_on: the data set.
        defends: the threat.
        pretrained_classes: classes of that data set.
        pretrained_size: height and width of its images.
        pretrained_on: how the leaderboard prepares ImageNet's pictures for it; None for other data
            sets, and where the zoo does not say, or squeezes pictures that are not square.
    """

    image_size: int | None = None

    def __init__(
        self,
        name: str,
        dataset: Literal["cifar10", "cifar100", "imagenet"] | None = None,
        threat_model: Literal["Linf", "L2", "corruptions"] | None = None,
        model_dir: str = "checkpoints/robustbench",
        num_classes: Count = 10,
    ) -> None:
        super().__init__()
        by_classes = {classes: each for each, classes in CLASSES.items()}
        if dataset is None and num_classes not in by_classes:
            raise OptionError(
                "dataset",
                dataset,
                f"say what {name} was trained on, one of {', '.join(CLASSES)}; these data have"
                f" {num_classes} classes",
            )
        chosen = dataset or by_classes[num_classes]
        if CLASSES[chosen] != num_classes:
            raise OptionError(
                "dataset",
                chosen,
                f"has {CLASSES[chosen]} classes, and these data {num_classes}: change --data",
            )
        self.name, self.num_classes = name, num_classes
        self.trained_on, self.defends = chosen, threat_model or "Linf"
        self.pretrained_classes, self.pretrained_size = num_classes, SIZES[chosen]
        self.network = _load(name, chosen, self.defends, model_dir)
        self.pretrained_on = _preparation(name, chosen, self.defends)

    def forward(self, images: Tensor) -> Any:
        """Images (B, 3, H, W) in [0, 1] to logits (B, K)."""
        return self.network(images)


def _preparation(name: str, dataset: str, threat_model: str) -> Preparation | None:
    """What `robustbench.data.get_preprocessing` makes of pictures, as far as ours can do it."""
    if dataset != "imagenet":  # images are pixels there, and stay as they are
        return None
    try:
        theirs, enums = (
            importlib.import_module(f"robustbench.{each}") for each in ("data", "model_zoo.enums")
        )
        kinds = enums.BenchmarkDataset(dataset), enums.ThreatModel(threat_model)
        steps = theirs.get_preprocessing(*kinds, name, None).transforms
        resize, crop = steps[0], steps[1]
        size, shorter = int(crop.size[-1]), resize.size
        by = resize.interpolation.value
    except (ImportError, LookupError, AttributeError, RuntimeError, TypeError, ValueError):
        # Releases differ in what they have.
        return None
    return preparation_as(size, shorter, by) if isinstance(shorter, int) else None


def _load(name: str, dataset: str, threat_model: str, model_dir: str) -> nn.Module:
    """`robustbench.utils.load_model` with errors that a user can mend."""
    try:
        # Its release imports the package under the name that it had before it was released.
        for old in ("autoattack", "autoattack.state"):
            if importlib.util.find_spec("pyautoattack") and old not in sys.modules:
                sys.modules[old] = importlib.import_module(f"py{old}")
        with warnings.catch_warnings():  # about its own imports, which nobody here can mend
            warnings.simplefilter("ignore")
            utils = importlib.import_module("robustbench.utils")
    except ImportError as error:
        raise UserError(
            f"robustbench:{name}: the package robustbench cannot be imported"
            f' ({first_line(error)}): pip install "robusttrain[robustbench]", then pip install'
            " --no-deps robustbench (which asks for an older timm)"
        ) from error
    try:
        network: nn.Module = utils.load_model(
            model_name=name, dataset=dataset, threat_model=threat_model, model_dir=model_dir
        )
    except Exception as error:  # names, downloads and files fail in many classes
        raise UserError(
            f"robustbench:{name}: cannot be had for {dataset}, {threat_model}"
            f" ({type(error).__name__}: {first_line(error)}): check the name, dataset and"
            f" threat_model, or put the zoo's file under {model_dir}/{dataset}/{threat_model}"
        ) from error
    return network
