"""Asking a model: `Queried`, the one wrapper through which evaluation and attacks do.

Three kinds of models draw random numbers:

- Those that take streams (``takes_rng = True``) and draw from them alone. The streams belong to the
  images, and so batches may have any size.
- Those that draw from torch's, numpy's or Python's global generator: dropout that is left on,
  ``torch.randn_like`` in ``forward``. Many say nothing of it. Such a pass draws for the whole batch
  at once, and one image's answer would depend on its neighbours. `Queried` watches the generators
  during every pass; where one was drawn from, it asks again, image by image, each with the
  generators seeded from the streams of that image. That is slow, and right.
- Those with a generator of their own. Nobody can seed it: two passes that differ give them away,
  and they are treated as random, but a second evaluation gives other figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robusttrain.core.generators import SharedGenerators
from robusttrain.core.rng import Rng
from robusttrain.models.declared import answer, says_random

#: What is told, in one line, of a model that draws from global generators.
SLOW = (
    "the model draws from a global generator (torch's, numpy's or Python's), so it is asked image"
    " by image, each with seeds of its own: to make that fast, set takes_rng = True and draw from"
    " the rng that forward(images, rng) is given"
)

Terms = list[tuple[float, Tensor]]


class SourceModel(nn.Module):
    """A model that a source builds, and what it declares beside ``forward(images, rng)``.

    Any other ``nn.Module`` has a forward pass and no more: attributes of its own that happen to
    have these names mean nothing.
    """

    takes_rng = True
    #: Whether it asks through a `Queried` of its own, so that what is drawn is watched there.
    asks_queried = False
    #: Whether it has a g that can be asked alone, with ``transform``.
    transforms = False

    def transform(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """g(images), where it `transforms`."""
        raise NotImplementedError

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> Terms:
        """Weights and logits (B, K) whose losses add up to the loss: one, but for ensembles that
        fuse losses.
        """
        return [(1.0, self(images, rng))]

    def shares(self) -> Sequence[tuple[nn.Module, float]]:
        """An ensemble's members with their weights, which sum to 1."""
        return [(self, 1.0)]


class Queried(nn.Module):
    """A model as attacks and evaluation ask it.

    What holds for any ``nn.Module`` that draws from its streams or from global generators: each
    image's answer, and its gradient, depend on the model, the image and that image's streams alone,
    up to rounding. Batch size, order, the number of processes and the callers' own draws change
    nothing. A caller's next draw from a global generator is as if nobody had been asked.

    Without streams (``rng`` is None) the model is called as torch calls it, and draws from wherever
    it does.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K).
        advance: called with the number of images of every evaluation, for progress bars.
        part_of: the ensemble that counts what this one is asked, and the share that a pass is of
            one of its own.

    Attributes:
        gradients: images that were asked about with a gradient.
        queries: images that were asked about without one.
        draws_globally: whether the model was seen to draw from a global generator.
    """

    takes_rng = True

    def __init__(
        self,
        model: nn.Module,
        advance: Callable[[float], None] = lambda count: None,
        part_of: tuple[Queried, float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.advance = model, advance
        self._part_of = part_of  # a tuple hides it: a member does not own its ensemble
        self.gradients = self.queries = 0.0
        self.draws_globally = self._differs = False
        self._watches = not (isinstance(model, SourceModel) and model.asks_queried)

    @staticmethod
    def of(model: nn.Module) -> Queried:
        """The model itself if it is wrapped already, else wrapped."""
        return model if isinstance(model, Queried) else Queried(model)

    # Whether it is random.

    @property
    def random(self) -> bool:
        """Whether two answers to one image may differ: the model says so, or was seen to draw, or
        to differ.

        A model that says that it is random is believed. One that says that it is not, or nothing,
        is believed until a pass draws from a global generator, or `settle` finds two answers that
        differ.
        """
        return says_random(self.model) or self.draws_globally or self._differs

    def settle(self, images: Tensor, rng: Rng) -> bool:
        """Find out whether the model is random, and from where it draws: ask twice about a few
        images, uncounted.

        Args:
            images: (B, C, H, W), any few.
            rng: their streams, (B,).

        Returns:
            `random`, as it is known from then on.
        """
        if len(images):
            counts = self.gradients, self.queries
            advance, self.advance = self.advance, lambda count: None
            _, differ = ask_twice(self, images, rng)
            self._differs = bool(differ.any())
            self.advance, (self.gradients, self.queries) = advance, counts
        return self.random

    def asked_twice(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """`ask_twice`, where a model that is known as random is random for every image: draws may
        agree by chance.
        """
        logits, differ = ask_twice(self, images, rng)
        return logits, differ | self.random

    # Asking.

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), with streams (B,)."""
        self.count(images)
        return self._asked(lambda x, streams: [(1.0, answer(self.model, x, streams))], images, rng)[
            0
        ][1]

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> Terms:
        """Weights and logits (B, K) whose losses add up to the loss: one of each, but for ensembles
        that fuse losses.

        Counts once, as all members are evaluated together.
        """
        if not isinstance(self.model, SourceModel):
            return [(1.0, self(images, rng))]
        self.count(images)
        return self._asked(self.model.loss_terms, images, rng)

    @property
    def transforms(self) -> bool:
        """Whether the model has a g that can be asked alone."""
        return isinstance(self.model, SourceModel) and self.model.transforms

    def transform(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The model's g alone, g(images), for attacks that have checked that there is one."""
        self.queries += len(images)
        self.advance(len(images))

        def g(x: Tensor, streams: Rng | None) -> Terms:
            assert isinstance(self.model, SourceModel)
            return [(1.0, self.model.transform(x, streams))]

        return self._asked(g, images, rng)[0][1]

    @property
    def members(self) -> list[tuple[Queried, float]]:
        """An ensemble's n members with their weights; asking one counts as an n-th of asking the
        ensemble.

        Any other model is its own only member.
        """
        members = members_of(self.model)
        if len(members) == 1 and members[0][0] is self.model:
            return [(self, 1.0)]
        return [
            (Queried(member, part_of=(self, 1 / len(members))), weight)
            for member, weight in members
        ]

    def count(self, images: Tensor, share: float = 1.0) -> None:
        """Note a pass of these images through ``share`` of the model."""
        if self._part_of is not None:
            whole, part = self._part_of
            whole.count(images, part * share)
            return
        if torch.is_grad_enabled() and images.requires_grad:
            self.gradients += share * len(images)
        else:
            self.queries += share * len(images)
        self.advance(share * len(images))

    def reset(self) -> None:
        """Count from zero."""
        self.gradients = self.queries = 0.0

    def _asked(
        self, ask: Callable[[Tensor, Rng | None], Terms], images: Tensor, rng: Rng | None
    ) -> Terms:
        """One pass, as a whole where it draws nothing from global generators, else image by
        image.
        """
        if rng is None or not len(images) or not self._watches:
            return ask(images, rng)
        generators, position = SharedGenerators(images.device), rng.position
        drawn = True
        try:
            if not self.draws_globally:
                found = ask(images, rng)
                drawn = generators.drawn
                if not drawn:
                    return found
            rng.position = position  # as if nobody had asked about the whole
            found = self._apart(ask, images, rng, generators)
            if self.draws_globally:
                return found
            rng.position = position
            return ask(images, rng)
        finally:
            if drawn:
                generators.put_back()

    def _apart(
        self,
        ask: Callable[[Tensor, Rng | None], Terms],
        images: Tensor,
        rng: Rng,
        generators: SharedGenerators,
    ) -> Terms:
        """Image by image, each with the global generators seeded from its own streams."""
        each: list[Terms] = []
        streams = rng
        for i, key in enumerate(rng.fold("global generators").keys.tolist()):
            generators.seed(key)
            # Another thread may have drawn during the pass before, or a lazy layer only once.
            before = None if self.draws_globally else SharedGenerators(images.device)
            streams = rng[i : i + 1]
            each.append(ask(images[i : i + 1], streams))
            self.draws_globally = self.draws_globally or (before is not None and before.drawn)
        rng.position = streams.position
        return [
            (terms[0][0], torch.cat([logits for _, logits in terms]))
            for terms in zip(*each, strict=True)
        ]


def call_model(model: nn.Module, images: Tensor, rng: Rng | None) -> Tensor:
    """Logits (B, K) of a model, asked through `Queried`."""
    logits: Tensor = Queried.of(model)(images, rng)
    return logits


def loss_terms(model: nn.Module, images: Tensor, rng: Rng | None) -> Terms:
    """`Queried.loss_terms` of a model."""
    return Queried.of(model).loss_terms(images, rng)


def members_of(model: nn.Module) -> Sequence[tuple[nn.Module, float]]:
    """An ensemble's members with their weights, which sum to 1; any other model is its own only
    member.
    """
    return model.shares() if isinstance(model, SourceModel) else [(model, 1.0)]


def ask_twice(model: nn.Module, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Two forward passes with different draws: what the model says, and whether it says the same
    again.

    No flag can be trusted here. An attack that has found one misclassified draw has won against a
    model that repeats itself, and has perhaps only been lucky against others.

    Args:
        model: prepared for attack.
        images: (B, C, H, W), pixel values in [0, 1].
        rng: streams of the images, (B,).

    Returns:
        Mean logits (B, K) of both passes, float32 or wider, and (B,) bool: whether the passes
        differ for that image.
    """
    queried = Queried.of(model)
    with torch.no_grad():
        first, second = (queried(images, rng.fold(draw)) for draw in range(2))
    # NaN differs from itself, but a model that always answers NaN is not random.
    differ = (first != second) & ~(first.isnan() & second.isnan())
    dtype = torch.promote_types(first.dtype, torch.float32)
    return (first.to(dtype) + second.to(dtype)) / 2, differ.any(dim=1)
