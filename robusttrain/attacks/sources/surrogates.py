"""Sources that the attacker trained: other models, named by their files.

An image that fools such a model may fool the target, and is verified on the target itself. Whoever
builds the attack opens the sources that name a file (`Source.opened`); an opened source holds the
model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robusttrain.attacks.asking import Queried, SourceModel
from robusttrain.attacks.sources.basic import IdentityBackward, Reader, Source, Target
from robusttrain.core.checked import checked
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng
from robusttrain.models.clipping import found
from robusttrain.models.defended import DefendedClassifier
from robusttrain.models.defense import Defense

#: The beginning of a path that stands for a model which evaluate.py trains first.
TO_BE_TRAINED = "surrogate:"


def surrogates_in(node: Any) -> list[str]:
    """The names of all surrogates under a configuration node."""
    if isinstance(node, str) and node.startswith(TO_BE_TRAINED):
        return [node.removeprefix(TO_BE_TRAINED)]
    items = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else []
    return list(dict.fromkeys(name for item in items for name in surrogates_in(item)))


def paths_in(node: Any) -> list[str]:
    """All files under a configuration node from which a source reads a model."""
    if isinstance(node, list):
        return [path for item in node for path in paths_in(item)]
    if not isinstance(node, Mapping):
        return []
    here = node.get("path")
    own = [here] if isinstance(here, str) and names_file(here) else []
    return own + [path for item in node.values() for path in paths_in(item)]


def names_file(path: str | None) -> bool:
    """Whether a source's path is a file's, not that of a model still to be trained."""
    return bool(path) and not str(path).startswith(TO_BE_TRAINED)


def unopened(source: Source, path: str | None) -> UserError:
    """The error of a source whose file was not read."""
    name = type(source).__name__
    if names_file(path):
        return UserError(
            f"source {name}: {path} was not read yet: take {name}(...).opened(robusttrain.READER)"
        )
    return UserError(
        f"source {name}: path = {path!r}: evaluate.py trains the attacker's model that this stands"
        " for; here, name a file"
    )


@dataclass(frozen=True)
class OtherModel(Source):
    """Another model, whatever the target: black-box transfer.

    Args:
        model: images in [0, 1] to logits.
    """

    model: nn.Module
    knows = "another model, labels"
    other_model = True

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return self.model


@dataclass(frozen=True)
class Checkpoint(Source):
    """Another model, from a checkpoint of this framework: black-box transfer.

    Args:
        path: checkpoint file.
        defended: whether to differentiate through that model's own defense as well (if it has one).
        trust: packages besides robusttrain whose classes the checkpoint may name.
    """

    path: str
    defended: bool = False
    trust: list[str] = field(default_factory=list)
    knows = OtherModel.knows
    other_model = True

    def opened(self, read: Reader) -> Source:
        if not names_file(self.path):
            return self
        model = read.checkpoint(self.path, self.trust)
        return OtherModel(model if self.defended else model.classifier)

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        raise unopened(self, self.path)


@dataclass(frozen=True)
class OtherDefense(Source):
    """f_a'(g'(x)) of another defended classifier, whatever the target.

    Args:
        model: f_a' with its g' inside.
        inner: how that classifier is differentiated.
    """

    model: DefendedClassifier
    inner: Source = field(default_factory=IdentityBackward)
    knows = "kind of defense, labels"
    other_model = True

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return self.inner(self.model)


@dataclass(frozen=True)
class OwnSurrogate(Source):
    """f_a'(g'(x)): the attacker trains a defense of the same kind, attacks it white-box, and
    transfers.

    With a g' of few steps on the target's own f_b this is the small-N transfer of [P1 4.1].

    Args:
        path: checkpoint of f_a' with its g' inside.
        inner: how f_a'(g'(x)) is differentiated.
        trust: packages besides robusttrain whose classes the checkpoint may name.
    """

    path: str
    inner: Source = field(default_factory=IdentityBackward)
    trust: list[str] = field(default_factory=list)
    knows = OtherDefense.knows
    other_model = True

    def opened(self, read: Reader) -> Source:
        if not names_file(self.path):
            return self
        model = read.checkpoint(self.path, self.trust)
        if model.defense is None:
            raise UserError(
                f"source OwnSurrogate: {self.path} has no defense: --attack transfer-standard"
                f" --attack.source.path {self.path} (in Python, source Checkpoint)"
            )
        return OtherDefense(model, self.inner)

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        raise unopened(self, self.path)


class _Ensemble(SourceModel):
    def __init__(self, members: list[nn.Module], weights: list[float], fuse: str) -> None:
        super().__init__()
        self.members, self.weights, self.fuse = nn.ModuleList(members), weights, fuse
        self.fuses_losses = fuse == "losses" and len(members) > 1
        # A list hides them: members are registered once
        self._asked = [Queried.of(member) for member in members]

    @property
    def random(self) -> bool:
        """Whether a member is, as far as is known by now."""
        return any(member.random for member in self._asked)

    def each(self, images: Tensor, rng: Rng | None) -> list[tuple[float, Tensor]]:
        """Weight and logits (B, K) of every member."""
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        terms = [
            (weight, self._ask(member, images, rng.fold(number)))
            for number, (member, weight) in enumerate(zip(self._asked, self.weights, strict=True))
        ]
        for _, logits in terms:
            if logits.shape != terms[0][1].shape:
                classes = terms[0][1].shape[1]
                raise UserError(
                    f"source Ensemble: members answer with {classes} and {logits.shape[1]} classes"
                )
        return terms

    def _ask(self, member: Queried, images: Tensor, rng: Rng) -> Tensor:
        """The member's logits. Its backward pass computes its activations anew, so that memory
        holds those of one member only.

        A member with a defense without a derivative keeps its activations: to compute them anew
        would cost many times what it saves.
        """
        keep = len(self.members) == 1 or not (torch.is_grad_enabled() and images.requires_grad)
        if keep or _optimises(member):
            logits: Tensor = member(images, rng)
            return logits

        def compute(points: Tensor) -> Tensor:
            # Each computation starts where the streams stand now: a member may draw from them
            # directly, and the way back has to repeat its numbers.
            logits: Tensor = member(points, rng[:])
            return logits

        def again() -> Tensor:
            logits: Tensor = checkpoint(
                compute, images, use_reentrant=False, preserve_rng_state=False
            )
            return logits

        before = member.draws_globally, found()
        logits = again()
        # The first pass may show that the member draws from global generators, or clips. Later
        # passes then go image by image, or are one and not two, and the second computation has to
        # go as the first did.
        return logits if (member.draws_globally, found()) == before else again()

    def shares(self) -> list[tuple[nn.Module, float]]:
        return list(zip(self.members, self.weights, strict=True))

    def made_of(self, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return _Ensemble([change(member) for member in self.members], self.weights, self.fuse)

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> list[tuple[float, Tensor]]:
        """Weights and logits: of each member if losses are fused, else of the whole ensemble."""
        return self.each(images, rng) if self.fuse == "losses" else [(1.0, self(images, rng))]

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        terms = self.each(images, rng)
        if self.fuse == "logits":
            return torch.stack([weight * logits for weight, logits in terms]).sum(dim=0)
        if self.fuse == "losses":
            return torch.stack(
                [weight * logits.log_softmax(dim=1) for weight, logits in terms]
            ).sum(dim=0)
        # Summed as logarithms: where all members are sure, the probabilities of the other classes
        # round to 0, and nothing would be left to follow.
        logs = torch.stack(
            [
                logits.log_softmax(dim=1).clamp_min(torch.finfo(logits.dtype).min)
                + math.log(weight)
                for weight, logits in terms
                if weight > 0
            ]
        )
        return logs.logsumexp(dim=0)


def _optimises(model: nn.Module) -> bool:
    """Whether a model holds a defense without a derivative, one that searches, like g."""
    return any(isinstance(part, Defense) and not part.differentiable for part in model.modules())


def fused(members: list[nn.Module], weights: list[float] | None, fuse: str) -> nn.Module:
    """Several models as one, as `Ensemble` describes; the gradient's memory does not grow with
    their number.
    """
    return _Ensemble(members, weights or [1 / len(members)] * len(members), fuse)


@checked
@dataclass(frozen=True)
class Ensemble(Source):
    """Several sources as one, by a weighted mean of logits [P2 eq. 8], probabilities [P3 eq. 3, P5
    eq. 6] or losses.

    Args:
        members: the sources.
        weights: one per member, summing to 1; None for equal ones.
        fuse: "logits", "probabilities" or "losses"; the last gives an attack the mean of the
            members' losses, and everybody else the mean of their log-probabilities.
    """

    members: list[Source] = field(default_factory=lambda: [Target()])
    weights: list[float] | None = None
    fuse: Literal["logits", "probabilities", "losses"] = "logits"
    knows = "other models, labels"

    def __post_init__(self) -> None:
        if not self.members:
            raise OptionError("members", [], "name at least one source")
        given = self.weights
        if given is not None and (
            len(given) != len(self.members) or abs(sum(given) - 1) > 1e-6 or min(given) < 0
        ):
            raise OptionError(
                "weights", given, f"give {len(self.members)} numbers from 0 on that sum to 1"
            )

    def opened(self, read: Reader) -> Source:
        return replace(self, members=[member.opened(read) for member in self.members])

    def on_classifier(self) -> Source:
        return replace(self, members=[member.on_classifier() for member in self.members])

    def __call__(self, target: DefendedClassifier) -> nn.Module:
        return fused([member(target) for member in self.members], self.weights, self.fuse)
