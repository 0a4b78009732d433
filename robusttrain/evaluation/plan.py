"""The plan of an evaluation: everything that its figures depend on, in plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from robusttrain.core.checked import checked
from robusttrain.core.errors import OptionError, UserError, above, at_least, one_of
from robusttrain.core.parts import class_name
from robusttrain.evaluation.audit import LEAST
from robusttrain.evaluation.compiling import COMPILE, Compile
from robusttrain.evaluation.precision import PRECISIONS, Precision

#: A part of the configuration: {"class_path": ..., "init_args": {...}}.
Node = dict[str, Any]
#: Which images are attacked.
Split = Literal["test", "validation"]
SPLITS = get_args(Split)
#: Options that came after points of studies had been kept (`docs/results/studies/*-points.zip`).
LATER = ("split", "unfit")
#: Where data lie and how they are loaded: no figure depends on these arguments of a data set.
PLACES = ("root", "folder", "download", "workers", "memory_limit_gib")


@checked
@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated, how it is attacked and scored, and where the results go.

    The command line, YAML and Python all end in a plan. A plan is complete, so no later step fills
    in defaults. A plan is plain, so it is written into ``results.json`` and read back from there.

    Args:
        model: node of the network f_a.
        attacks: nodes of the attacks by name, each with its source.
        data: node of the data set.
        defense: node of the defense before f_a; None for none.
        checkpoint: file that train.py left, with the weights, or the name of a model that comes
            with the package; None for a network of another origin.
        weights: weights of a network without a checkpoint: safetensors or a state dict.
        weights_which: which of several sets of weights in the file: averaged, raw, or the path of
            one in the file; default: averaged ones if there are any.
        trust: packages besides robusttrain whose classes a checkpoint may name.
        suites: named suites, whose conditions decide which attacks apply.
        asked: attacks that were named by themselves and stay in any case.
        unfit: attacks of the suites that do not go with the threat, and why, by name.
        epsilon: radius of the threat, for every attack.
        split: attacked images: of the test split, or the validation images, which training held out
            of the train split; choose by these, and ask the test split once.
        images: size of a seeded subset of these images.
        at_most: whether ``images`` comes from a suite; where there are fewer images, all are taken.
        handed_over: target and images came from Python, and no command can build them again.
        draws: fresh draws of a random defense that score an image.
        precision: in which attacks differentiate; auto: the faster one on this machine, for
            attacks that rounding leaves as strong. Verdicts, and attacks by queries, are always in
            float32.
        compile: whether attacks and g take gradients of compiled networks (torch.compile, on GPUs
            CUDA graphs as well); auto: where it was measured to save time here. Verdicts are plain
            passes.
        survivors: attack only images that no attack before broke.
        leave_early: an image leaves an attack as soon as the target, if it is not random,
            misclassifies a point of it within the threat. Without, verdicts are the same and
            attacks take longer.
        surrogate_epochs: epochs of models that an attacker trains first.
        seed: of every random number.
        output: folder for results.json and the journal.
        beside: nobody chose the output: where an unfinished run of other settings lies there, a
            folder beside it is taken.
        fresh: drop what an unfinished run left in --output.
        audit: look for weak attacks and masked gradients.
        audit_images: size of the audit's sample; default: by cost, 8 to 32.
        strict: exit code 3 unless the audit's verdict is sound, no certificate was broken, and the
            attacks missed nothing that transfer finds (``bare_classifier``).
        save_images: keep adversarial images (safetensors).
        save_verdicts: keep each image's verdicts (safetensors), for reports and comparisons.
        curve: radii at which the attacks run besides, nested: 0,2/255,4/255,8/255.
        curve_effort: shares of their steps or queries with which they run besides, nested: 1/4,1/2.
        tries: a random target's image may be submitted so often, and one draw that falls suffices;
            default: as many as there are draws.
        known_draw: attack a random target besides with the draw that scores in the attacker's
            hands.
        bare_classifier: attack the classifier without its defense, too, at the same budget, and say
            what the defense adds.
        certify: certify what a vote over Gaussian noise answers (Cohen et al. 2019), and compare
            with what attacks leave of it; the defense has to begin with such noise.
        certify_draws: draws that bound a certificate, or judge an adversarial image; 100,000 in the
            paper.
        certify_choosing: draws that choose the class to certify.
        certify_alpha: how likely a certificate may be wrong.
        export: png writes adversarial images as files, and judges the files, too.
        checkpoints: folder of the newest checkpoint, and of an attacker's models.
        trainer: options of Lightning's Trainer.

    Raises:
        OptionError: a value that cannot work.
        UserError: options that exclude each other.
    """

    model: Node
    attacks: dict[str, Node]
    data: Node
    defense: Node | None = None
    checkpoint: str | None = None
    weights: str | None = None
    weights_which: str | None = None
    trust: list[str] = field(default_factory=list)
    suites: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    unfit: dict[str, str] | None = None
    epsilon: float | None = None
    split: Split = "test"
    images: int | None = None
    at_most: bool = False
    handed_over: bool = False
    draws: int = 10
    precision: Precision = "auto"
    compile: Compile = "off"
    survivors: bool = False
    leave_early: bool = True
    surrogate_epochs: int | None = None
    seed: int = 0
    output: str = "results/newest"
    beside: bool = False
    fresh: bool = False
    audit: bool = True
    audit_images: int | None = None
    strict: bool = False
    save_images: bool = False
    save_verdicts: bool = True
    curve: list[float] = field(default_factory=list)
    curve_effort: list[float] = field(default_factory=list)
    tries: int | None = None
    known_draw: bool = False
    bare_classifier: bool = False
    certify: bool = False
    certify_draws: int = 1000
    certify_choosing: int = 100
    certify_alpha: float = 0.001
    export: str | None = None
    checkpoints: str = "checkpoints"
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("--draws", self.draws, 1)
        at_least("--seed", self.seed, 0)
        if self.tries is not None:
            at_least("--tries", self.tries, 1)
            if self.tries > self.draws:
                fix = f"needs as many draws that score: --draws {self.draws} are too few"
                raise OptionError("--tries", self.tries, fix)
        if self.surrogate_epochs is not None:
            at_least("--surrogate_epochs", self.surrogate_epochs, 1)
        if self.audit_images is not None:
            at_least("--audit_images", self.audit_images, LEAST)
        for name in ("certify_draws", "certify_choosing", "certify_alpha"):
            if not self.certify and getattr(self, name) != getattr(EvaluationPlan, name):
                raise OptionError(f"--{name}", getattr(self, name), "needs --certify true")
        at_least("--certify_choosing", self.certify_choosing, 1)
        if not 0 < self.certify_alpha < 1:
            raise OptionError("--certify_alpha", self.certify_alpha, "must lie between 0 and 1")
        if self.certify_draws < (least := math.ceil(math.log2(2 / self.certify_alpha))):
            raise OptionError(
                "--certify_draws",
                self.certify_draws,
                f"decide nothing even if all agree: with --certify_alpha {self.certify_alpha:g}"
                f" give at least {least}",
            )
        for value in self.curve:
            at_least("--curve", value, 0)
        for value in self.curve_effort:  # nothing spent is the clean accuracy
            above("--curve_effort", value, 0)
        one_of("--split", self.split, SPLITS)
        one_of("--precision", self.precision, PRECISIONS)
        one_of("--compile", self.compile, COMPILE)
        parts = {"model": self.model, "data": self.data, **self.attacks}
        for name, node in parts.items():
            if not isinstance(node, dict) or not isinstance(node.get("class_path"), str):
                raise UserError(f"plan: {name} = {node!r}: must be a mapping with a class_path")
        if self.weights_which is not None and self.weights is None:
            raise UserError("--weights.which: chooses in a file: name it with --weights FILE")
        if self.strict and not self.audit:
            raise UserError("--strict true needs the audit: leave out --audit false")

    @property
    def data_name(self) -> str:
        """The data set's name in the report: its class, and its folder where it has one."""
        root = (self.data.get("init_args") or {}).get("root")
        name = class_name(self.data["class_path"]) + (f" {root}" if root else "")
        return f"{name} (validation split)" if self.split == "validation" else name

    def without(self, attacks: Mapping[str, str]) -> EvaluationPlan:
        """The plan without some attacks, given by name."""
        left = {name: node for name, node in self.attacks.items() if name not in attacks}
        return replace(self, attacks=left)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `from_json` makes the plan again.

        Without options of `LATER` that have their defaults: points of studies, which are known by
        their plans, were measured before there were such options.
        """
        left = {name for name in LATER if getattr(self, name) == getattr(EvaluationPlan, name)}
        return {name: value for name, value in asdict(self).items() if name not in left}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EvaluationPlan:
        """The plan that ``to_json`` wrote.

        Raises:
            UserError: something is missing, or unknown here.
        """
        names = {each.name for each in fields(cls)}
        if unknown := sorted(set(content) - names):
            raise UserError(f"plan: {unknown[0]} is unknown to this version of robusttrain")
        if missing := sorted({"model", "attacks", "data"} - set(content)):
            raise UserError(f"plan: {missing[0]} is missing, and a plan needs it")
        return cls(**content)
