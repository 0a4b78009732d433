"""What the studies of transfer share: models that attack each other, on images that all of them
classify correctly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robusttrain.evaluation.report import Figure
from robusttrain.running.jobs import Call, Job
from studies.scales import Scale, Settings
from studies.transfer_measures import matrix

PIXEL = 1 / 255
HELD_OUT = "all but "


@dataclass(frozen=True)
class Field:
    """Models on one data set.

    Args:
        models: by their names in the tables: trainings, or what evaluate.py's ``--models`` takes.
        data: options of the data set.
        images: test images that are looked at; those that all models classify correctly count.
        epsilon: radius of the threat, Linf, for pixel values in [0, 1].
        crafted: folder of images that studies share.
    """

    models: Mapping[str, Job | str]
    data: Settings
    images: int
    epsilon: float
    crafted: str

    def about(
        self,
        attacks: Mapping[str, Settings],
        images: int | None = None,
        epsilon: float | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Arguments of the functions in `studies.transfer_measures`; ``attacks`` holds what is
        changed of each preset.
        """
        models = [m.checkpoint if isinstance(m, Job) else m for m in self.models.values()]
        arguments = {"attacks": dict(attacks), "models": models, "data": dict(self.data), **options}
        return {**arguments, "images": images or self.images, "epsilon": epsilon or self.epsilon}

    def point(
        self,
        attacks: Mapping[str, Settings],
        images: int | None = None,
        epsilon: float | None = None,
        held_out: bool = False,
    ) -> Call:
        """Each model under images that were crafted on each, or also on all but one."""
        ensembles = {"held_out": True} if held_out else {}
        about = self.about(attacks, images, epsilon, **ensembles)
        return Call(matrix, about, {"folder": None, "crafted": self.crafted})

    @property
    def setting(self) -> str:
        """The models, for a report."""
        return f"models {', '.join(f'{name} ({self.called(name)})' for name in self.models)}."

    def called(self, name: str) -> str:
        """What evaluate.py calls the model of this name in its tables."""
        model = self.models[name]
        return model.name if isinstance(model, Job) else model.removeprefix("timm:")

    def rate(
        self,
        point: Mapping[str, Any],
        attack: str,
        source: str,
        target: str,
        kind: str = "success_top1",
    ) -> Mapping[str, Any]:
        """value, ci95 and images of one cell; a source "all but NAME" is the ensemble of the
        others.
        """
        row = (
            f"all but {self.called(source.removeprefix(HELD_OUT))}"
            if source.startswith(HELD_OUT)
            else self.called(source)
        )
        cell: Mapping[str, Any] = point["attacks"][attack][kind]["cells"][row][self.called(target)]
        return cell

    def mean(
        self,
        point: Mapping[str, Any],
        attack: str,
        black_box: bool,
        held_out: bool = False,
        kind: str = "success_top1",
    ) -> float:
        """Mean rate over pairs: onto targets that are no part of the source (black box), or onto
        those that are.
        """
        pairs = [
            ((HELD_OUT + one) if held_out else one, other)
            for one in self.models
            for other in self.models
            # The ensemble of all models but one holds the others.
            if ((one == other) == black_box if held_out else (one != other) == black_box)
        ]
        values = [self.rate(point, attack, *pair, kind)["value"] for pair in pairs]
        return sum(values) / len(values)


def field(scale: Scale) -> Field:
    """Models and images of a scale."""
    crafted, size = str(scale.folder / "crafted"), {"small": 250, "paper": 10_000}
    if scale.data["data"] == "imagenet" and scale.name == "paper":
        timm: dict[str, Job | str] = {
            "Inc-v3": "timm:inception_v3.tf_in1k",
            "Inc-v4": "timm:inception_v4.tf_in1k",
            "IncRes-v2": "timm:inception_resnet_v2.tf_in1k",
            "Inc-v3 adv": "timm:inception_v3.tf_adv_in1k",
            "IncRes-v2 ens": "timm:inception_resnet_v2.tf_ens_adv_in1k",
            "ResNet-152": "timm:resnet152.tv_in1k",
            "DenseNet-121": "timm:densenet121.tv_in1k",
            "VGG-19": "timm:vgg19_bn.tv_in1k",
        }
        return Field(timm, {**scale.data, "data.image_size": 299}, 50_000, 15 * PIXEL, crafted)
    if scale.data["data"] == "imagenet":
        packaged = {f"lite{number}": f"efficientnet_lite{number}" for number in range(3)}
        return Field(packaged, scale.data, 24, 15 * PIXEL, crafted)
    if scale.name == "smoke":  # networks that know enough for three of them to have some right
        longer = {**scale.data, **scale.model, **scale.trainings["standard"], **scale.more}
        quick = {
            f"ResNet {seed}": scale.job(f"quick-seed-{seed}", {**longer, "seed": seed}, 3)
            for seed in range(3)
        }
        return Field(quick, scale.data, 30, 0.2, crafted)
    # Of seed 1, like the attacker's own models in the studies of the main paper, which then are
    # trained once.
    trained = {f"ResNet {seed}": scale.f_a("standard", seed) for seed in range(2)}
    trained |= {"ResNet adv": scale.f_a("adversarial", 1), "VGG": scale.f_b(5)}
    return Field(trained, scale.data, size[scale.name], 8 * PIXEL, crafted)


def counted(point: Mapping[str, Any]) -> str:
    """The denominator of a point's rates, for a report."""
    return (
        f"{point['images']} of {point['candidates']} images are classified correctly by all models"
        " and count."
    )


def with_interval(cell: Mapping[str, Any]) -> str:
    """A cell for a table, with its interval."""
    return str(Figure(cell["value"], *cell["ci95"])) if cell["value"] is not None else "n/a"
