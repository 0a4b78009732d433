"""How large a study is, and the models that several studies share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from studies.parts import Argument, Arguments, Training

#: Radius of the threat in every table and figure of the paper, Linf, pixel values in [0, 1].
EPSILON = 0.031


@dataclass(frozen=True)
class Scale:
    """How large a study is.

    Args:
        name: smoke, small or paper.
        about: one line for the report.
        data: options of the data set.
        model: options of f_a.
        recipe: training preset for f_a without adversarial examples.
        f_b_recipe: training preset for an f_b.
        epochs: of every f_a.
        f_b_epochs: of the adversarially trained f_b.
        f_b_steps: of the attack that it is trained with.
        inner_steps: of the attack in adversarial training and TRADES; 10 are the presets'.
        more: options of every training.
        short: options that make the epochs of costly trainings shorter.
        short_images: images of such an epoch.
        train_images: images of a whole epoch.
        images: test images of an attack.
        draws: of g that score an image.
        steps: N of g.
        attack: options of every attack.
        eot: preset of BPDA-I with EOT, and its options.
        f_b_width: channels of f_b's first convolution; 64 is the paper's.
        precision: in which f_b is differentiated inside g.
        f_b: file with weights of an adversarially trained f_b, None to train one.
    """

    name: str
    about: str
    data: Arguments
    model: Arguments
    recipe: str
    f_b_recipe: str
    epochs: int
    f_b_epochs: int
    f_b_steps: int
    inner_steps: int
    more: Arguments
    short: Arguments
    short_images: int
    train_images: int
    images: int
    draws: int
    steps: int
    attack: Arguments
    eot: Arguments
    f_b_width: int = 64
    precision: str = "float32"
    f_b: Path | None = None

    def training(
        self, label: str, *arguments: Argument, seed: int = 0, passes: int = 1
    ) -> Training:
        """A training of f_a."""
        seeded = (*self.data, *self.model, *arguments, *self.more, *self.short, "--seed", str(seed))
        return Training(label, seeded, self.epochs, self.short_images, passes=passes)

    def standard(self, seed: int = 0) -> Training:
        """f_a alone, without a defense."""
        return self.training(f"standard-seed-{seed}", "--training", self.recipe, seed=seed)

    def adversarial(self, seed: int = 0) -> Training:
        """f_a by adversarial training (Madry et al. 2018)."""
        how = ("--training", "adversarial", *self.inner())
        return self.training(
            f"adversarial-seed-{seed}", *how, seed=seed, passes=1 + self.inner_steps
        )

    def trades(self) -> Training:
        """f_a by TRADES (Zhang et al. 2019)."""
        return self.training(
            "trades", "--training", "trades", *self.inner(), passes=2 + self.inner_steps
        )

    def inner(self) -> Arguments:
        """Options of the attack inside adversarial training; fewer steps are longer, to reach as
        far.
        """
        if self.inner_steps == 10:
            return ()
        attack = "--training.objective.attack"
        return (
            f"{attack}.steps",
            str(self.inner_steps),
            f"{attack}.step_size",
            f"{0.06 / self.inner_steps:g}",
        )

    def adversarial_f_b(self, seed: int = 0) -> Path | Training:
        """The f_b of the defense: weights from a file, or trained adversarially; of an attacker for
        another seed.
        """
        if self.f_b is not None and seed == 0:
            return self.f_b
        how = (*self.f_b_model(), "--training", self.f_b_recipe, "--seed", str(seed))
        options = (*self.data, *how, *self.more, *self.short)
        return Training(
            f"f_b-adversarial-seed-{seed}",
            options,
            self.f_b_epochs,
            self.short_images,
            1 + self.f_b_steps,
        )

    def f_b_model(self) -> Arguments:
        """Options of f_b's network."""
        return (
            "--model",
            "vgg_small",
            *(("--model.width", str(self.f_b_width)) if self.f_b_width != 64 else ()),
        )

    def standard_f_b(self, epochs: int) -> Training:
        """An f_b by standard training, in whole epochs; untrained for 0."""
        how = (*self.f_b_model(), "--training", self.recipe)
        options = (*self.data, *how, *self.more)
        return Training(f"f_b-standard-{epochs}-epochs", options, epochs, self.train_images)

    def ours(
        self,
        radius: float = 0.2,
        steps: int | None = None,
        start: bool = True,
        f_b: Path | Training | None = None,
        seed: int = 0,
    ) -> Training:
        """f_a trained behind g, by default the g of the paper."""
        steps = self.steps if steps is None else steps
        told = f_b.label if isinstance(f_b, Training) else "f_b"
        label = f"ours-{told}-radius-{radius:g}-steps-{steps}" + ("" if start else "-no-start")
        label += f"-seed-{seed}" if seed else ""
        options = ("--defense.radius", f"{radius:g}", "--defense.steps", str(steps))
        started = () if start else ("--defense.random_start", "false")
        trained = self.training(
            label, "--training", self.recipe, *self.defense(f_b), *options, *started, seed=seed
        )
        return replace(trained, steps=steps)

    def defense(self, f_b: Path | Training | None = None) -> Arguments:
        """Options of g, but for radius and steps."""
        weights = ("--defense.weights", f_b or self.adversarial_f_b())
        narrow = ("--defense.model.width", str(self.f_b_width)) if self.f_b_width != 64 else ()
        return (
            "--defense",
            "advtransform",
            *narrow,
            *weights,
            "--defense.precision",
            self.precision,
        )

    def attacked(
        self,
        target: Training,
        *attacks: Argument,
        images: int | None = None,
        epsilon: float = EPSILON,
    ) -> Arguments:
        """Arguments of evaluate.py: ``attacks`` are ``--attack`` options with what belongs to
        them.
        """
        size = (
            "--images",
            str(images or self.images),
            "--draws",
            str(self.draws),
            "--epsilon",
            f"{epsilon:g}",
        )
        root = self.data[2:4] if "--data.root" in self.data else ()
        return (
            "--checkpoint",
            target,
            *size,
            *root,
            *attacks,
            *self.attack,
            "--save_verdicts",
            "true",
        )
