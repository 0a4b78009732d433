"""The three sizes of every study, and the models that several studies share."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from robusttrain.config.attacks import attack_nodes
from robusttrain.config.build import build, fit_to_data
from robusttrain.config.checkpoints import self_contained
from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.evaluation.plan import EvaluationPlan, Node
from robusttrain.training.plan import TrainingPlan
from studies.plans import Job

#: Radius of the threat in every table and figure of the paper, Linf, pixel values in [0, 1].
EPSILON = 0.031
#: Options by their names, with typed values.
Settings = Mapping[str, Any]


def typed(settings: Settings, prefix: str = "--") -> list[str]:
    """The settings as on a command line."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in settings.items()
    }
    return [f"{prefix}{key}={text}" for key, text in texts.items()]


def training_plan(settings: Settings) -> TrainingPlan:
    """The plan of train.py for these options, its networks fitted to the data."""
    return copy.deepcopy(_training_plan(*typed(settings)))


@lru_cache(maxsize=256)  # the points of a study ask for the same few models again and again
def _training_plan(*options: str) -> TrainingPlan:
    plan = copy.deepcopy(read_plan(options))
    with naming_root():
        facts = build(plan.data, "data").facts()
    for part in ("model", "defense"):
        fit_to_data(getattr(plan, part), facts, part)
    return plan


@contextmanager
def naming_root() -> Iterator[None]:
    """What is wrong with the data is said of ``--root``."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--data.root", "--root")) from error


def attack(name: str, changes: Settings, epsilon: float | None) -> dict[str, Node]:
    """The node of an attack preset by its name, with some values changed, such as
    ``gradient.draws``.
    """
    return attack_nodes([name], [(key, json.dumps(to)) for key, to in changes.items()], epsilon)


SILENT = {"robust.every": 0, "pictures.images": 0}


@dataclass(frozen=True)
class Scale:
    """How large a study is; by default as in the paper."""

    name: str = "paper"
    #: One line for the report.
    about: str = (
        "the paper's settings: CIFAR-10, ResNet-18, 80 epochs of SGD at a constant rate of 0.1"
    )
    #: Options of the data set, of f_a, of every training, and those that shorten costly epochs.
    data: Settings = field(default_factory=lambda: {"data": "cifar10"})
    model: Settings = field(default_factory=lambda: {"model": "resnet18"})
    more: Settings = field(default_factory=lambda: SILENT)
    short: Settings = field(default_factory=dict)
    #: Training presets for f_a without adversarial examples, and for f_b; epochs of both.
    recipe: str = "paper"
    f_b_recipe: str = "f_b-paper"
    epochs: int = 80
    f_b_epochs: int = 20
    #: Images of a shortened epoch, and of a whole one.
    short_images: int = 45_000
    train_images: int = 45_000
    #: Steps of the attack in adversarial training and TRADES; 10 are the presets'.
    inner_steps: int = 10
    #: Test images of an attack, and draws of g that score one.
    images: int = 1_000
    draws: int = 10
    #: Of g: its steps N, channels of f_b's first convolution, the precision f_b is differentiated
    #: in, and a file with weights of an adversarially trained f_b, None to train one.
    steps: int = 13
    f_b_width: int = 64
    precision: str = "float32"
    f_b: str | None = None
    #: What is changed of every attack; preset of BPDA-I with EOT, and what is changed of it.
    attack: Settings = field(default_factory=dict)
    eot: tuple[str, Settings] = ("bpda-eot-paper", {})
    #: Folder of trained models, and those asked for, by name; what one rests on comes before it.
    folder: Path = Path("checkpoints/studies")
    models: dict[str, Job] = field(default_factory=dict)

    def job(self, label: str, settings: Settings, epochs: int) -> Job:
        """A model by the options of train.py; 0 epochs leave a network its initial weights."""
        return self.asked(label, training_plan({**settings, "trainer.max_epochs": epochs}))

    def asked(self, label: str, work: Any) -> Job:
        """A model that is trained if a point needs it."""
        job = Job(label, work, self.folder)
        return self.models.setdefault(job.name, job)

    def needed(self, jobs: Iterable[Job]) -> list[Job]:
        """The models whose files the jobs name, those first that others need."""
        text = json.dumps([job.work.to_json() for job in jobs])
        found: list[Job] = []
        for name, model in reversed(self.models.items()):
            if name in text:
                found.append(model)
                text += json.dumps(model.work.to_json())
        return found[::-1]

    def training(self, label: str, settings: Settings, seed: int = 0) -> Job:
        """An f_a."""
        seeded = {**self.data, **self.model, **settings, **self.more, **self.short, "seed": seed}
        return self.job(label, seeded, self.epochs)

    def standard(self, seed: int = 0) -> Job:
        """f_a alone, without a defense."""
        return self.training(f"standard-seed-{seed}", {"training": self.recipe}, seed)

    def adversarial(self, seed: int = 0) -> Job:
        """f_a by adversarial training (Madry et al. 2018)."""
        how = {"training": "adversarial", **inner(self.inner_steps)}
        return self.training(f"adversarial-seed-{seed}", how, seed)

    def trades(self) -> Job:
        """f_a by TRADES (Zhang et al. 2019)."""
        return self.training("trades", {"training": "trades", **inner(self.inner_steps)})

    def adversarial_f_b(self, seed: int = 0) -> str:
        """Weights of the defense's f_b: a file, or trained adversarially; of an attacker for
        another seed.
        """
        if self.f_b is not None and seed == 0:
            return self.f_b
        how = {"model": "vgg_small", "model.width": self.f_b_width, "training": self.f_b_recipe}
        settings = {**self.data, **how, "seed": seed, **self.more, **self.short}
        return self.job(f"f_b-adversarial-seed-{seed}", settings, self.f_b_epochs).weights

    def standard_f_b(self, epochs: int) -> Job:
        """An f_b by standard training, in whole epochs; untrained for 0."""
        how = {"model": "vgg_small", "model.width": self.f_b_width, "training": self.recipe}
        return self.job(f"f_b-standard-{epochs}-epochs", {**self.data, **how, **self.more}, epochs)

    def ours(
        self,
        radius: float = 0.2,
        steps: int | None = None,
        start: bool = True,
        f_b: str | None = None,
        seed: int = 0,
    ) -> Job:
        """f_a trained behind g, by default the g of the paper."""
        g = self.g(f_b, steps) | {"defense.radius": radius, "defense.random_start": start}
        return self.training(f"ours-radius-{radius:g}", {"training": self.recipe, **g}, seed)

    def g(self, f_b: str | None = None, steps: int | None = None) -> dict[str, Any]:
        """Options of g, f_b being a file of weights."""
        return {
            "defense": "advtransform",
            "defense.model.width": self.f_b_width,
            "defense.weights": f_b or self.adversarial_f_b(),
            "defense.precision": self.precision,
            "defense.steps": steps or self.steps,
        }

    def transformation(self, f_b: str | None = None, **changes: Any) -> dict[str, Node | None]:
        """Nodes of the data and of g alone."""
        changed = {f"defense.{key}": value for key, value in changes.items()}
        plan = training_plan({**self.data, **self.g(f_b), **changed})
        return {"data": plan.data, "defense": plan.defense}

    def attacked(
        self,
        target: Job,
        name: str,
        changes: Settings | None = None,
        images: int | None = None,
        epsilon: float = EPSILON,
    ) -> EvaluationPlan:
        """The target under an attack; ``changes`` are values of its preset."""
        plan = target.work
        assert isinstance(plan, TrainingPlan)  # else there is no checkpoint
        return EvaluationPlan(
            model=self_contained(plan.model),
            attacks=attack(name, {**(changes or {}), **self.attack}, epsilon),
            data=plan.data,
            defense=self_contained(plan.defense),
            checkpoint=target.checkpoint,
            epsilon=epsilon,
            images=images or self.images,
            draws=self.draws,
            audit=False,  # tables and figures hold attacks that are weak on purpose
            save_verdicts=True,
        )


def inner(steps: int, where: str = "training.objective.attack") -> dict[str, Any]:
    """Options of the attack inside adversarial training; fewer steps are longer, to reach as
    far.
    """
    if steps == 10:
        return {}
    return {f"{where}.steps": steps, f"{where}.step_size": round(0.06 / steps, 6)}


PAPER = Scale()
SMALL = Scale(
    name="small",
    about="CIFAR-10 (JPEG), f_a a ResNet of 0.7 M parameters, f_b in bfloat16 inside g",
    data={"data": "imagefolder"},
    model={"model": "resnet_small"},
    more={**SILENT, "data.validation": 0.02},
    short={"trainer.limit_train_batches": 128},
    recipe="standard",
    f_b_recipe="f_b",
    epochs=3,
    f_b_epochs=3,
    short_images=128 * 128,
    train_images=49_000,
    inner_steps=5,
    images=100,
    draws=4,
    precision="bfloat16",
    eot=("bpda-eot", {"gradient.draws": 5}),
)
SMOKE = Scale(
    name="smoke",
    about="a check that everything runs, on digits: its figures mean nothing",
    data={"data": "digits", "data.batch_size": 64},
    model={"model": "resnet_small", "model.widths": [8, 16, 16], "model.blocks": 1},
    more={**SILENT, "trainer.enable_progress_bar": False},
    short={"trainer.limit_train_batches": 8},
    recipe="standard",
    f_b_recipe="f_b",
    epochs=1,
    f_b_epochs=1,
    short_images=512,
    train_images=1_350,
    inner_steps=2,
    images=16,
    draws=2,
    steps=2,
    f_b_width=16,
    attack={"steps": 2},
    eot=("bpda-eot", {"gradient.draws": 2}),
)
DIGITS = Scale(
    name="digits",
    about="embedded digits, f_a a ResNet of 0.08 M parameters, trained to the end",
    data={"data": "digits", "data.batch_size": 64},
    model={"model": "resnet_small", "model.widths": [16, 32, 64], "model.blocks": 1},
    more={**SILENT, "trainer.enable_progress_bar": False},
    recipe="standard",
    f_b_recipe="f_b",
    epochs=12,
    f_b_epochs=6,
    short_images=1_350,
    train_images=1_350,
    images=100,
    draws=10,
    f_b_width=16,
    eot=("bpda-eot", {"gradient.draws": 10}),
)
SCALES = {scale.name: scale for scale in (SMOKE, DIGITS, SMALL, PAPER)}


def on_imagenet(scale: Scale, folder: str) -> Scale:
    """The scale on ImageNet's validation images, with models that come with their weights.

    Raises:
        UserError: the folder is not there, or the scale makes do with embedded digits.
    """
    _check(scale, "--imagenet", folder, Path(folder).is_dir(), "folder")
    about = "ImageNet's validation images at 224 pixels, models as they were published"
    data = {"data": "imagenet", "data.root": folder}
    return replace(scale, about=about, data=data, model={"model": "efficientnet_lite0"})


def placed(scale: Scale, root: str | None, f_b: str | None) -> Scale:
    """The scale with the user's own files.

    Raises:
        UserError: a file or folder is not there, missing where it is needed, or given where it
            means nothing.
    """
    if root is None and scale.data["data"] == "imagefolder":
        raise UserError(
            "--root: scale small needs CIFAR-10 as an image folder, DIR/train/<class> and"
            " DIR/test/<class>"
        )
    if root is not None:
        _check(scale, "--root", root, Path(root).is_dir(), "folder")
        scale = replace(scale, data={**scale.data, "data.root": root})
    if f_b is not None:
        _check(scale, "--f_b", f_b, Path(f_b).is_file(), "file")
    return replace(scale, f_b=f_b)


def _check(scale: Scale, option: str, value: str, there: bool, what: str) -> None:
    if scale.name == "smoke":
        raise UserError(
            f"{option} {value}: scale smoke makes do with embedded digits; leave it out"
        )
    if not there:
        raise UserError(f"{option} {value}: no such {what}")
