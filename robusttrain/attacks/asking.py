"""`Queried`: the one wrapper through which evaluation and attacks ask a model.

Three kinds of models draw random numbers:

- Some take streams (``takes_rng = True``) and draw from them alone. The streams belong to the
  images, so batches may have any size.
- Some draw from torch's, numpy's or Python's global generator: dropout that is left on,
  ``torch.randn_like`` in ``forward``. Many of these do not say so. Such a pass draws for the whole
  batch at once, and one image's answer would depend on its neighbours. `Queried` watches the
  generators during every pass. After a pass that drew from one, `Queried` asks again, image by
  image, with the generators seeded from the streams of each image. The second way is slow, and
  right.
- Some have a generator of their own, which nobody can seed. Two passes with equal streams that
  differ give such a model away (`Queried.settle`). It may draw one number for a whole pass, and
  copies that are asked together would all share it: a mean over draws would be one draw. So it is
  asked image by image, too, but a second evaluation gives other figures.

`Queried` also settles once what kind of answers a model gives (`robusttrain.attacks.answers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.attacks.answers import Answers, as_logits, kind_of, other_images
from robusttrain.attacks.leaving import Leaving
from robusttrain.core.counting import Counting
from robusttrain.core.errors import UserError
from robusttrain.core.generators import SharedGenerators
from robusttrain.core.labels import too_high
from robusttrain.core.rng import Rng
from robusttrain.models.declared import answer, as_module, dtype_of, says_random
from robusttrain.models.defended import DefendedClassifier

#: The warning about a model that draws from global generators.
SLOW = (
    "the model draws from a global generator (torch's, numpy's or Python's), so it is asked image"
    " by image, each with seeds of its own: to make that fast, set takes_rng = True and draw from"
    " the rng that forward(images, rng) is given"
)

#: The warning about a model that no seed reaches.
UNSEEN = (
    "the model answers otherwise in each pass, by a generator (or a memory) of its own that no seed"
    " reaches, so it is asked image by image, and another run gives other figures: set takes_rng ="
    " True and draw from the rng that forward(images, rng) is given"
)

Terms = list[tuple[float, Tensor]]


class SourceModel(nn.Module):
    """A model that a source builds. It may declare more than ``forward(images, rng)``.

    Of any other ``nn.Module`` only the forward pass counts. Attributes that happen to have the
    names below mean nothing there.
    """

    takes_rng = True
    #: Whether the model asks through a `Queried` of its own, which then watches the generators.
    asks_queried = False
    #: Whether the model has a g that can be asked alone, with ``transform``.
    transforms = False
    #: Whether `loss_terms` gives several pairs. The loss is then not that of the model's answer,
    #: and a margin above 0 does not say that the answer is wrong.
    fuses_losses = False

    def transform(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """g(images), where it `transforms`."""
        raise NotImplementedError

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> Terms:
        """Weights and logits (B, K) whose weighted losses add up to the loss.

        There is one pair, except where it `fuses_losses`.
        """
        return [(1.0, self(images, rng))]

    def shares(self) -> Sequence[tuple[nn.Module, float]]:
        """An ensemble's members with their weights, which sum to 1."""
        return [(self, 1.0)]

    def made_of(self, change: Callable[[nn.Module], nn.Module]) -> nn.Module | None:
        """The same model with ``change`` of those that it asks with streams of its own choice; None
        for a model that hands on the streams that it is given.
        """
        return None


class Queried(Counting, nn.Module):
    """A model as attacks and evaluation ask it.

    The model may be any ``nn.Module`` that draws from its streams or from global generators. Each
    image's answer, and its gradient, then depend on the model, the image and that image's streams
    alone, up to rounding. Batch size, order, the number of processes and the callers' own draws
    change nothing. A caller's next draw from a global generator is the same as without the pass.

    Without streams (``rng`` is None) the model is called as torch calls it, and nothing is seeded.

    Answers come as logits (B, K), float32 or as wide as weights and images, whatever the model
    returns (`robusttrain.models.outputs`). Probabilities become their logarithm.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K): a module or a function.
        advance: called with the number of images of every evaluation, for progress bars.
        part_of: the ensemble that counts the passes of this member, and the share of one of the
            ensemble's passes that each of them is.

    Attributes:
        gradients: images that were asked about with a gradient.
        queries: images that were asked about without one.
        draws_globally: whether the model was seen to draw from a global generator.
        draws_unseen: whether `settle` saw it draw from elsewhere, where no seed reaches.
        answers: the kind of its answers; None as long as it was not asked about any image.
        classes: K; None as long as it was not asked.
        labels: the lowest and the highest label of the attacked images; each needs a logit.
        leaving: which images of the attacked batch the model need not be asked about any more;
            None: it is asked about all.
    """

    takes_rng = True
    counted = (
        *("gradients", "queries", "draws_globally", "draws_unseen", "_differs", "answers"),
        *("classes", "labels", "leaving", "advance", "_part_of"),
    )

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Any],
        advance: Callable[[float], None] = lambda count: None,
        part_of: tuple[Queried, float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.advance = as_module(model), advance
        self._part_of = part_of  # a tuple hides it: a member does not own its ensemble
        self.gradients = self.queries = 0.0
        self.draws_globally = self._differs = False
        self.draws_unseen = isinstance(model, DefendedClassifier) and model.observed_unseen
        self._watches = not (isinstance(model, SourceModel) and model.asks_queried)
        # A source with a `Queried` of its own has logits from there.
        self.answers: Answers | None = None if self._watches else "logits"
        self.classes: int | None = None
        self.labels = (0, 0)
        self.leaving: Leaving | None = None

    @staticmethod
    def of(model: nn.Module | Callable[[Tensor], Any]) -> Queried:
        """The model itself if it is a `Queried` already, else the model in a new one."""
        return model if isinstance(model, Queried) else Queried(model)

    # Whether the model is random.

    @property
    def random(self) -> bool:
        """Whether two answers to one image may differ.

        A model that says that it is random is believed. Any other counts as deterministic until a
        pass draws from a global generator, or `settle` gets two answers that differ.
        """
        return says_random(self.model) or self.draws_globally or self._differs

    def settle(self, images: Tensor, rng: Rng) -> bool:
        """Find out whether the model is random, and from where it draws.

        The model is asked twice about a few images; these passes are not counted.

        Args:
            images: (B, C, H, W), a few of any kind.
            rng: their streams, (B,).

        Returns:
            `random`, as it stands from then on.
        """
        if len(images):
            counts = self.gradients, self.queries
            advance, self.advance = self.advance, lambda count: None
            _, differ = ask_twice(self, images, rng)
            self._differs = bool(differ.any())
            if self._differs and not self._asks_apart:
                which = differ.nonzero().squeeze(1)[:LOOKED_AT]
                self.draws_unseen = self._differs_by_itself(images[which], rng[which])
            self.advance, (self.gradients, self.queries) = advance, counts
        return self.random

    def _differs_by_itself(self, images: Tensor, rng: Rng) -> bool:
        """Whether answers to images (n, C, H, W) with equal streams (n,) differ, and not by
        rounding alone, which a defense that searches may amplify on accelerators.
        """
        with torch.no_grad():
            one, again, other = (self(images, rng.fold(draw)) for draw in (0, 0, 1))
        alike, apart = ((one - each).abs().nan_to_num().sum() for each in (again, other))
        return bool(alike > UNSEEN_SHARE * apart)

    @property
    def _asks_apart(self) -> bool:
        """Whether the model is asked image by image."""
        return self.draws_globally or self.draws_unseen

    def asked_twice(self, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """`ask_twice`, but a `random` model counts as random for every image.

        Two draws may agree by chance.
        """
        logits, differ = ask_twice(self, images, rng)
        return logits, differ | self.random

    # Asking.

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), with streams (B,).

        Raises:
            UserError: the answers are no logits, or have fewer classes than the labels name.
        """
        if self.leaving is not None and rng is not None and rng.rows is not None:
            return self.leaving.ask(self._answered, images, rng)
        return self._answered(images, rng)

    def _answered(self, images: Tensor, rng: Rng | None) -> Tensor:
        """One counted pass: logits (B, K)."""
        self.count(images)
        return self._logits(self._asked(self._plainly, images, rng), images, rng)[0][1]

    def _plainly(self, images: Tensor, rng: Rng | None) -> Terms:
        return [(1.0, answer(self.model, images, rng))]

    def _logits(self, terms: Terms, images: Tensor, rng: Rng | None) -> Terms:
        """Answers as logits. The answers to the first images show of which kind they are; a few
        other images settle a doubt.
        """
        self.classes = terms[0][1].shape[1]
        if self.labels[1] >= self.classes:
            raise UserError(too_high(*self.labels, self.classes))
        if self.answers is None and len(images):
            self.answers = kind_of(
                [logits.detach() for _, logits in terms],
                dtype_of(self.model),
                lambda: self._about_others(images, rng),
            )
        kind = self.answers or "logits"
        return [
            (weight, as_logits(logits, kind).to(torch.promote_types(logits.dtype, images.dtype)))
            for weight, logits in terms
        ]

    def _about_others(self, images: Tensor, rng: Rng | None) -> Tensor:
        """Answers, uncounted, about images that nobody attacks: black, white, grey, noise."""
        others, streams = other_images(images, rng)
        generators = SharedGenerators(images.device)
        try:
            with torch.no_grad():
                return answer(self.model, others, streams)
        finally:
            generators.put_back()

    def loss_terms(self, images: Tensor, rng: Rng | None = None) -> Terms:
        """Weights and logits (B, K) whose weighted losses add up to the loss.

        There is one pair, except for ensembles that fuse losses. The pass counts once, since all
        members are evaluated together.
        """
        if not isinstance(self.model, SourceModel):
            return [(1.0, self(images, rng))]
        self.count(images)
        return self._logits(self._asked(self.model.loss_terms, images, rng), images, rng)

    @property
    def fuses_losses(self) -> bool:
        """Whether the loss is the mean of several losses, and not that of the model's answer."""
        return isinstance(self.model, SourceModel) and self.model.fuses_losses

    @property
    def transforms(self) -> bool:
        """Whether the model has a g that can be asked alone."""
        return isinstance(self.model, SourceModel) and self.model.transforms

    def transform(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The model's g alone, g(images). The caller has checked `transforms`."""
        self.queries += len(images)
        self.advance(len(images))

        def g(x: Tensor, streams: Rng | None) -> Terms:
            assert isinstance(self.model, SourceModel)
            return [(1.0, self.model.transform(x, streams))]

        return self._asked(g, images, rng)[0][1]

    @property
    def members(self) -> list[tuple[Queried, float]]:
        """An ensemble's n members with their weights; any other model is its own only member.

        A pass of one member counts as an n-th of a pass of the ensemble.
        """
        members = members_of(self.model)
        if len(members) == 1 and members[0][0] is self.model:
            return [(self, 1.0)]
        queried = []
        for member, weight in members:
            asked = Queried(member, part_of=(self, 1 / len(members)))
            asked.labels, asked.draws_unseen = self.labels, self.draws_unseen
            queried.append((asked, weight))
        return queried

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
        """One pass over the whole batch; image by image if it draws from elsewhere than streams."""
        if rng is None or not len(images) or not self._watches:
            return ask(images, rng)
        generators, position = SharedGenerators(images.device), rng.position
        drawn = True
        try:
            if not self._asks_apart:
                terms = ask(images, rng)
                drawn = generators.drawn
                if not drawn:
                    return terms
            rng.position = position  # as if the pass over the whole batch had not been
            terms = self._apart(ask, images, rng, generators)
            if self._asks_apart:
                return terms
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
        """One pass for each image, with the global generators seeded from its own streams."""
        each: list[Terms] = []
        streams = rng
        for i, key in enumerate(rng.fold("global generators").keys.tolist()):
            generators.seed(key)
            # The draw that was seen may have been another thread's, or a lazy layer's first and
            # last.
            before = None if self._asks_apart else SharedGenerators(images.device)
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


#: How many images that differ are asked about with equal streams; and how far these answers are
#: apart at least, as a share of that with other streams, where they rest on more than streams.
LOOKED_AT, UNSEEN_SHARE = 8, 0.1
#: Two answers that differ by no more than this share of the largest logit are the same.
ROUNDING = 1e-5


def ask_twice(model: nn.Module, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Two forward passes with different draws: their mean, and whether they differ.

    No flag can be trusted here. One misclassified draw is a success against a model that repeats
    itself, and may be mere luck against a random one.

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
    # What rounding may explain, as on accelerators that add in any order, is no randomness: taken
    # for that, it would cost an attack by queries most of its steps. NaN differs from itself, but a
    # model that always answers NaN is not random.
    largest = first.abs().nan_to_num(0, 0, 0).amax(dim=1, keepdim=True)
    apart = ((first - second).abs() > ROUNDING * largest) | (first.isnan() != second.isnan())
    differ = apart & (first != second)
    dtype = torch.promote_types(first.dtype, torch.float32)
    return (first.to(dtype) + second.to(dtype)) / 2, differ.any(dim=1)
