"""The sizes of every study, and the models that several studies share."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robusttrain.config.attacks import attack_nodes
from robusttrain.config.checkpoints import self_contained
from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.evaluation.plan import EvaluationPlan, Node
from robusttrain.running import training
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
    with naming_root():
        fitted = training.Job(read_plan(options))
    return replace(fitted.plan, model=fitted.model, defense=fitted.defense)


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


@dataclass(frozen=True)
class Scale:
    """How large a study is; ``scales.yaml`` says what the values mean."""

    name: str
    about: str
    data: Settings
    model: Settings
    more: Settings
    short: Settings
    recipe: str
    f_b_recipe: str
    epochs: int
    f_b_epochs: int
    short_images: int
    train_images: int
    inner_steps: int
    images: int
    draws: int
    steps: int
    f_b_width: int
    precision: str
    f_b: str | None
    attack: Settings
    eot: tuple[str, Settings]
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
        needed: list[Job] = []
        for name, model in reversed(self.models.items()):
            if name in text:
                needed.append(model)
                text += json.dumps(model.work.to_json())
        return needed[::-1]

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


def _scales() -> dict[str, Scale]:
    values = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    return {name: Scale(name, **{**values["paper"], **own}) for name, own in values.items()}


SCALES = _scales()


def placed(
    scale: Scale, root: str | None = None, f_b: str | None = None, imagenet: str | None = None
) -> Scale:
    """The scale with the user's own files; on ImageNet's validation images with models that come
    with their weights.

    Raises:
        UserError: a file or folder is not there, missing where it is needed, or given where it
            means nothing.
    """
    for option, value, is_there, what in (
        ("--imagenet", imagenet, Path.is_dir, "folder"),
        ("--root", root, Path.is_dir, "folder"),
        ("--f_b", f_b, Path.is_file, "file"),
    ):
        if value is not None and scale.name == "smoke":
            raise UserError(
                f"{option} {value}: scale smoke makes do with embedded digits; leave it out"
            )
        if value is not None and not is_there(Path(value)):
            raise UserError(f"{option} {value}: no such {what}")
    if imagenet is not None:
        about = "ImageNet's validation images at 224 pixels, models as they were published"
        data = {"data": "imagenet", "data.root": imagenet}
        scale = replace(scale, about=about, data=data, model={"model": "efficientnet_lite0"})
    if root is not None:
        scale = replace(scale, data={**scale.data, "data.root": root})
    elif scale.data["data"] == "imagefolder":
        raise UserError(
            "--root: scale small needs CIFAR-10 as an image folder, DIR/train/<class> and"
            " DIR/test/<class>"
        )
    return replace(scale, f_b=f_b)
