"""Adversarial images for transfer: crafted once on each source, stored on disk, and shown to every
target.

An attack runs on a maker: one model, or several models as one (hold-out ensembles). The crafted
images are a function of maker, attack, setting and clean images alone, and are stored under all of
these. So a run with other targets, or another study, finds them again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.attacks import Cost, Queried
from robusttrain.attacks.sources.surrogates import fused
from robusttrain.core.errors import UserError
from robusttrain.core.rng import Rng
from robusttrain.core.version import __version__
from robusttrain.data import Batch
from robusttrain.evaluation.answers import alike, answers_of
from robusttrain.evaluation.fitting import ask_about, check_copy, refuse_outside, settle
from robusttrain.evaluation.scenario import Scenario
from robusttrain.evaluation.scoring import top_classes
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.fast import left_uncopied
from robusttrain.storage.files import hash_of_json
from robusttrain.storage.journal import Entry, Journal, OtherImagesError, digest, weights_of
from robusttrain.storage.made_of import code_in, made_of, modules_in
from robusttrain.transfer.distances import l2, linf, rmsd


@dataclass(frozen=True)
class Model:
    """A model that takes part, as source, as target or as both.

    Args:
        defended: the classifier, with its defense if it has one.
        about: its configuration, as plain JSON, without its weights, which are hashed.
    """

    defended: DefendedClassifier
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """An attack that runs on every maker.

    Args:
        scenario: algorithm and source.
        about: its configuration, as plain JSON.
    """

    scenario: Scenario
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """The outcome of one attack on one maker, over all images.

    Args:
        classes: from each target to (n, D, k), its likeliest classes, see `answers`.
        distances: "linf", "l2" and "rmsd" to (n,), for pixel values in [0, 1].
        goals: (n,) target classes of a targeted attack, None for an untargeted one.
        seconds: of crafting; 0 for stored images.
        gradients: gradient evaluations per image, as they were counted; a pass of several models
            as one counts once. Of stored images without a count, as many as the attack states.
        queries: forward passes alone per image, likewise.
        examples: (m, C, H, W), the adversarial images of the first batch.
    """

    classes: dict[str, Tensor]
    distances: dict[str, Tensor]
    goals: Tensor | None
    seconds: float
    gradients: float
    queries: float
    examples: Tensor


class Crafting:
    """Crafts on makers, and asks targets.

    Args:
        models: all models by name.
        attacks: by name.
        folder: stores adversarial images; None stores none.
        seed: of every random number.
        precision: in which attacks differentiate classifiers.
        draws: draws of a random target's randomness for each image.
        fuse: how several models become one maker: "logits", "probabilities" or "losses".
        report: takes lines, as on a damaged file that has to be made again.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        attacks: Mapping[str, Planned],
        folder: Path | None = None,
        seed: int = 0,
        precision: torch.dtype = torch.float32,
        draws: int = 10,
        fuse: str = "logits",
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.models, self.attacks, self.folder = dict(models), dict(attacks), folder
        self.seed, self.precision, self.draws, self.fuse, self.report = (
            seed,
            precision,
            draws,
            fuse,
            report,
        )
        self._weights = {name: weights_of(model.defended) for name, model in models.items()}
        self._settled: set[str] = set()  # targets that were asked whether they are random
        # Every attack and every ensemble needs these copies again.
        self._fast: dict[tuple[str, torch.dtype], DefendedClassifier] = {}

    def compare_copies(self, makers: Iterable[str], batch: Batch) -> None:
        """Compare the copy of each maker that attacks would differentiate with the maker itself, on
        a few images; where they differ, the maker is differentiated, and a line says so.

        Args:
            makers: names of models.
            batch: images (B, C, H, W) in [0, 1] on the models' device.
        """
        rng = Rng.for_images(self.seed, batch.indices).fold("copy")
        for name in makers:
            model = self.models[name].defended
            check_copy(model, batch.images, rng, partial(self._named, name))

    def _named(self, name: str, line: str) -> None:
        self.report(f"{name}: {line}")

    def source(self, attack: str, maker: Sequence[str]) -> nn.Module:
        """What the attack differentiates: one model's source, or those of several models as one.

        Raises:
            UserError: the source does not fit a model; the error names attack and model.
        """
        sources = []
        differentiates = self.attacks[attack].scenario.attack.cost().gradients
        kind = self.precision if differentiates else torch.float32
        for name in maker:
            try:
                if (name, kind) not in self._fast:
                    self._fast[name, kind] = self.models[name].defended.fast(kind)
                sources.append(self.attacks[attack].scenario.source(self._fast[name, kind]))
            except UserError as error:
                raise UserError(f"attack {attack} on {name}: {error}") from error
        source = sources[0] if len(sources) == 1 else fused(sources, None, self.fuse)
        self.attacks[attack].scenario.attack.check(source)
        return source

    def cost(self, attack: str, maker: Sequence[str]) -> Cost:
        """What the attack asks of its `source`, per image, at most.

        Raises:
            UserError: as for `source`.
        """
        source = Queried.of(self.source(attack, maker))
        return self.attacks[attack].scenario.attack.cost_on(source)

    def fingerprint(self, attack: str, maker: Sequence[str]) -> dict[str, Any]:
        """All that an attack's images on a maker depend on, except the clean images."""
        members = {
            name: {
                **self.models[name].about,
                "weights": self._weights[name],
                "code": made_of(self.models[name].defended),
                **(
                    {"copied": False}
                    if left_uncopied(self.models[name].defended.classifier)
                    else {}
                ),
            }
            for name in maker
        }
        scenario = self.attacks[attack].scenario
        # What options do not say: the user's own code, and what a source has read from a file.
        code = code_in(scenario)
        read = [weights_of(each) + made_of(each) for each in modules_in(scenario.source)]
        return {
            "attack": dict(self.attacks[attack].about) | {"name": attack},
            **({"code": code} if code else {}),
            **({"source": read} if read else {}),
            # A model's name does not change its images.
            "maker": members,
            "fuse": self.fuse if len(maker) > 1 else None,
            "seed": self.seed,
            "precision": str(self.precision),
            "versions": {"robusttrain": __version__, "torch": torch.__version__},
        }

    def journal(self, attack: str, maker: Sequence[str]) -> Journal | None:
        """The journal that stores the images of an attack on a maker; None without a folder."""
        if self.folder is None:
            return None
        about = self.fingerprint(attack, maker)
        key = hash_of_json(about)[:12]
        name = re.sub(r"[^\w.=-]+", "-", f"{attack}-{'+'.join(maker)}")
        return Journal(self.folder / f"{name[:80]}-{key}", about, report=self.report)

    def run(
        self,
        attack: str,
        maker: Sequence[str],
        targets: Sequence[str],
        batches: Iterable[Batch],
        top: int = 5,
    ) -> Outcome:
        """Run one attack on one maker, and show its images to all targets.

        Args:
            attack: its name.
            maker: names of one or more models.
            targets: names of models.
            batches: images (B, C, H, W) in [0, 1] on the models' device.
            top: how many of a target's likeliest classes to record.

        Raises:
            UserError: the attack left its threat, or the disk is full.
        """
        scenario, source = self.attacks[attack].scenario, Queried.of(self.source(attack, maker))
        journal = self.journal(attack, maker)
        told: dict[str, Tensor] | None = None  # asked once, on the device of the first images
        settled = False
        cost = scenario.attack.cost()
        classes: dict[str, list[Tensor]] = {name: [] for name in targets}
        distances: dict[str, list[Tensor]] = {"linf": [], "l2": [], "rmsd": []}
        goals: list[Tensor] = []
        examples, seconds, spent, count = None, 0.0, torch.zeros(2, dtype=torch.float64), 0
        for images, labels, indices in batches:
            start = time.monotonic()
            rng = Rng.for_images(self.seed, indices)
            stage, entry = _kept(journal, images, labels, indices)
            if told is None:
                told = self._told(maker, images) if journal else {}
            if entry is None or not self._still(told, entry, maker):
                if not settled:  # attacks by queries ask whether it is random, and are told here
                    settled = bool(len(images))
                    ask_about(source, images, indices, self.seed)
                entry = self._craft(scenario, attack, source, images, labels, rng)
                if journal:
                    journal.put(stage, images, labels, indices, entry | told)
                seconds += time.monotonic() - start
            adversarial = entry["images"].to(images.device, images.dtype)
            if "goals" in entry:
                goals.append(entry["goals"])
            stated = torch.tensor(cost, dtype=torch.float64) * len(images)
            spent, count = spent + entry.get("asked", stated), count + len(images)
            for name in targets:
                asked = self.models[name].defended
                draws = self._draws_of(name, images, indices)
                classes[name].append(top_classes(asked, adversarial, rng.fold("score"), draws, top))
            for name, measure in (("linf", linf), ("l2", l2), ("rmsd", rmsd)):
                distances[name].append(measure(adversarial, images).cpu())
            examples = adversarial.cpu() if examples is None else examples
        assert examples is not None  # there is at least one batch
        gradients, queries = (spent / max(1, count)).tolist()
        return Outcome(
            {name: torch.cat(parts) for name, parts in classes.items()},
            {name: torch.cat(parts) for name, parts in distances.items()},
            torch.cat(goals) if goals else None,
            seconds,
            gradients,
            queries,
            examples,
        )

    def _told(self, maker: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        """What the makers answer to a few images, for constants that neither weights nor code
        show; of those that answer otherwise each time, nothing.
        """
        given = [answers_of(self.models[name].defended, images) for name in maker]
        return {
            f"answers {number}": torch.tensor(each, dtype=torch.float64)
            for number, each in enumerate(given)
            if each
        }

    def _still(
        self, told: Mapping[str, Tensor], entry: Mapping[str, Tensor], maker: Sequence[str]
    ) -> bool:
        """Whether stored images were made by models that answered as these do."""
        for number, name in enumerate(maker):
            now, then = (each.get(f"answers {number}") for each in (told, entry))
            if now is not None and (
                then is None or not alike(now.tolist(), then.tolist(), self.models[name].defended)
            ):
                return False
        return True

    def _draws_of(self, name: str, images: Tensor, indices: Tensor) -> int:
        """Draws that score a target: one for a deterministic target, else `draws`.

        The target says that it is random, or two answers to the images of the first batch tell.
        """
        target = self.models[name].defended
        if name not in self._settled and len(images):
            settle(target, images, indices, self.seed)
            self._settled.add(name)
        return self.draws if target.random else 1

    def _craft(
        self,
        scenario: Scenario,
        name: str,
        source: Queried,
        images: Tensor,
        labels: Tensor,
        rng: Rng,
    ) -> dict[str, Tensor]:
        """One batch of adversarial images, the evaluations that the attack asked for, and the
        classes that a targeted attack strove for.
        """
        streams = rng.fold("attack").fold(name)
        source.reset()
        adversarial = scenario.attack(source, images, labels, streams)
        asked = torch.tensor([source.gradients, source.queries], dtype=torch.float64)
        refuse_outside(name, scenario, adversarial, images)
        entry = {"images": adversarial.float().cpu(), "asked": asked}
        goals = scenario.attack.goals(source, images, labels, streams)
        if goals is not None:
            entry["goals"] = goals.cpu()
        return entry

    def clean(
        self, targets: Sequence[str], batches: Iterable[Batch], top: int = 5, purpose: str = "clean"
    ) -> dict[str, Tensor]:
        """The targets' answers on the clean images: from each target to ``classes``.

        Args:
            targets: names of models.
            batches: as for `run`.
            top: as for `run`.
            purpose: of the draws of random targets: "clean", to choose images by; or "score",
                those that score adversarial images.
        """
        classes: dict[str, list[Tensor]] = {name: [] for name in targets}
        for images, _, indices in batches:
            rng = Rng.for_images(self.seed, indices).fold(purpose)
            for name in targets:
                asked = self.models[name].defended
                draws = self._draws_of(name, images, indices)
                classes[name].append(top_classes(asked, images, rng, draws, top))
        return {name: torch.cat(parts) for name, parts in classes.items()}


def _kept(
    journal: Journal | None, images: Tensor, labels: Tensor, indices: Tensor
) -> tuple[str, Entry | None]:
    """Under which name the journal keeps what is crafted from these images, and that, if it is
    there. Another data set has images of the same numbers.
    """
    if journal is None:
        return "", None
    try:
        return "images", journal.get("images", images, labels, indices)
    except OtherImagesError:
        stage = f"images-{digest({'images': images, 'labels': labels})}"
        return stage, journal.get(stage, images, labels, indices)
