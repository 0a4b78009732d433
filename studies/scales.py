"""The sizes of every study, and the models that several studies share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from robusttrain.config.attacks import attack_nodes
from robusttrain.config.build import build
from robusttrain.config.checkpoints import self_contained
from robusttrain.config.training import read_plan
from robusttrain.core.errors import OptionError, UserError
from robusttrain.evaluation.plan import EvaluationPlan, Node
from robusttrain.running import training
from robusttrain.running.jobs import Call, Job
from robusttrain.training.plan import TrainingPlan

#: Radius of the threat in every table and figure of the paper, Linf, pixel values in [0, 1].
EPSILON = 0.031
#: Options by their names, with typed values.
Settings = Mapping[str, Any]


def typed(settings: Settings, prefix: str = "--") -> list[str]:
    """The settings as on a command line."""
    texts = {key: to if isinstance(to, str) else json.dumps(to) for key, to in settings.items()}
    return [f"{prefix}{key}={text}" for key, text in texts.items()]


@contextmanager
def naming_folder(options: Sequence[str]) -> Iterator[None]:
    """What is wrong with the data's folder is said of the option that names it here."""
    here = "--imagenet" if "--data=imagenet" in options else "--root"
    try:
        yield
    except UserError as error:
        line = str(error).replace("--data.root", here).replace(" --data.download false", "")
        raise UserError(line) from error


@cache  # the points of a study ask for the same few models again and again
def training_plan(*options: str) -> TrainingPlan:
    """The plan of train.py for these options, its networks fitted to the data."""
    with naming_folder(options):
        fitted = training.Job(read_plan(options))
    return replace(fitted.plan, model=fitted.model, defense=fitted.defense)


#: Attacks that the suites have since those points were measured. They are transfer from the network
#: alone: they can only take from what is left behind a defense, and a model without one has none.
SINCE = ("wt-apgd", "wt-apgd-t")


@cache  # points differ by their models far more often than by their attacks
def _nodes(names: tuple[str, ...], said: tuple[tuple[str, str], ...], epsilon: float) -> str:
    return json.dumps(attack_nodes(names, said, epsilon))


def nodes_of(
    names: Sequence[str], said: Iterable[tuple[str, str]], epsilon: float
) -> dict[str, Node]:
    """`attack_nodes`, for studies that ask for the same suite at each of their points: presets are
    read once, and each point gets nodes of its own.
    """
    nodes: dict[str, Node] = json.loads(_nodes(tuple(names), tuple(said), epsilon))
    return nodes


def before_transfer(attacks: Iterable[str]) -> list[str]:
    """The attacks of a suite without those of `SINCE`, for the studies whose points
    ``docs/results`` keeps.
    """
    return [name for name in attacks if name not in SINCE]


class Scale(SimpleNamespace):
    """How large a study is: the values of ``scales.yaml``; and ``models``, by name those asked for,
    in ``folder``: what one rests on comes before it.
    """

    def but(self, **changes: Any) -> Scale:
        """The scale with other values, and no models."""
        return Scale(**{**vars(self), "models": {}, **changes})

    def prepare(self) -> None:
        """Fetch the data, and refuse an f_b that cannot be one, before anything is trained."""
        options = typed(self.data)
        with naming_folder(options):
            build(training_plan(*options).data, "data").prepare_data()
        try:
            if self.weights:
                build(self.transformation()["defense"], "defense")
        except OptionError as error:
            raise UserError(f"--f_b {self.weights}: {error.fix}") from error

    def job(self, label: str, settings: Settings, epochs: int) -> Job:
        """A model by the options of train.py; 0 epochs leave a network its initial weights."""
        # Seeds and epochs are no part of what is read: many trainings differ in nothing else.
        others = {key: to for key, to in settings.items() if key != "seed"}
        plan = training_plan(*typed(others))
        trainer = {**plan.trainer, "max_epochs": epochs}
        return self.asked(
            label, replace(plan, trainer=trainer, seed=settings.get("seed", plan.seed))
        )

    def asked(self, label: str, work: TrainingPlan | Call) -> Job:
        """A model that is trained if a point needs it."""
        job = Job(label, work, self.folder)
        return self.models.setdefault(job.name, job)

    def training(self, label: str, settings: Settings, seed: int = 0) -> Job:
        """An f_a."""
        seeded = {**self.data, **self.model, **settings, **self.more, **self.short, "seed": seed}
        return self.job(label, seeded, self.epochs)

    def f_a(self, how: str, seed: int = 0) -> Job:
        """One without a defense, by the scale's training of this name."""
        return self.training(f"{how}-seed-{seed}", self.trainings[how], seed)

    def f_b(self, epochs: int | None = None, seed: int = 0) -> Job:
        """An f_b, trained adversarially, or for some epochs without (untrained for 0)."""
        of = {**self.data, "model": "vgg_small", "model.width": self.f_b_width, **self.more}
        if epochs is not None:
            label = f"f_b-standard-{epochs}-epochs"
            return self.job(label, {**of, **self.trainings["standard"]}, epochs)
        of |= {**self.trainings["f_b"], **self.short, "seed": seed}
        return self.job(f"f_b-adversarial-seed-{seed}", of, self.f_b_epochs)

    def ours(self, radius: float = 0.2, seed: int = 0, **changes: Any) -> Job:
        """f_a trained behind g, by default the g of the paper; ``changes`` as for `g`."""
        settings = {**self.trainings["standard"], **self.g(radius=radius, **changes)}
        return self.training(f"ours-radius-{radius:g}", settings, seed)

    def g(self, f_b: str | None = None, **changes: Any) -> dict[str, Any]:
        """Options of g, f_b being a file of weights, with some values changed."""
        own = {"model.width": self.f_b_width, "precision": self.precision, "steps": self.steps}
        values = {"weights": f_b or self.weights or self.f_b().weights, **own, **changes}
        return {"defense": "advtransform", **{f"defense.{key}": to for key, to in values.items()}}

    def transformation(self, f_b: str | None = None, **changes: Any) -> dict[str, Node | None]:
        """Nodes of the data and of g alone."""
        plan = training_plan(*typed({**self.data, **self.g(f_b, **changes)}))
        return {"data": plan.data, "defense": plan.defense}

    def attacked(
        self, target: Job, name: str, changes: Settings | None = None, **options: Any
    ) -> EvaluationPlan:
        """The target under an attack: ``changes`` are values of its preset, options the plan's."""
        plan = target.work
        assert isinstance(plan, TrainingPlan)  # else there is no checkpoint
        # No audit: tables and figures hold attacks that are weak on purpose.
        how = {"images": self.images, "draws": self.draws, "epsilon": EPSILON, "audit": False}
        how |= {"data": plan.data, "checkpoint": target.checkpoint, "save_verdicts": True}
        how |= options
        parts = {"model": self_contained(plan.model), "defense": self_contained(plan.defense)}
        values = {**(changes or {}), **self.attack}.items()
        to = [(key, json.dumps(value)) for key, value in values]
        nodes = attack_nodes([name], to, how["epsilon"])
        return EvaluationPlan(attacks=nodes, **parts, **how)


VALUES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
#: Of a study; what ImageNet changes of the other scales; what a report says of one.
OPTIONS, IMAGENET, SETTING = (VALUES.pop(name) for name in ("options", "imagenet", "setting"))
SCALES = {name: Scale(name=name, **{**VALUES["paper"], **own}) for name, own in VALUES.items()}
