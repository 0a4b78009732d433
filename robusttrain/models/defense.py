"""The noun ``Defense``."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robusttrain.core.errors import UserError
from robusttrain.core.resize import Position
from robusttrain.core.rng import Rng
from robusttrain.models.stepwise import State, loop

#: Logits (B, K) of images (B, C, H, W) with streams (B,): a classifier, or all that lies behind a
#: defense.
Classify = Callable[[Tensor, Rng | None], Tensor]


def _instead(handed_on: object) -> str:
    """What a transformation returned in place of images."""
    if isinstance(handed_on, Tensor):
        return f"transform returned a tensor {tuple(handed_on.shape)}, not images (B, C, H, W)"
    kind = type(handed_on)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"transform returned {module}{kind.__qualname__}, not a tensor (B, C, H, W)"


def check_defense(defense: Defense) -> None:
    """Raise UserError for a defense that cannot work, whatever it is given: its constructor has not
    called that of torch's modules, or its transformation does not take images and streams.
    """
    kind = type(defense).__name__
    if "_modules" not in vars(defense):
        raise UserError(f"defense {kind}: call super().__init__() first in its __init__")
    try:
        inspect.signature(defense.transform).bind("images", "rng")
    except TypeError as error:
        raise UserError(
            f"defense {kind}: transform has to take images and rng, transform(self, images, rng)"
            f" ({error})"
        ) from error


class Defense(nn.Module, ABC):
    """An input transformation g: images to images.

    The class attributes, its traits, say what an evaluation must know to attack the defense
    properly. Suites read the traits, and sources call the methods that go with them. Nothing else
    about a defense matters to them.
    """

    #: Whether two passes over one image may differ. Attacks then need EOT, and scores several
    #: draws.
    random: bool = False
    #: Whether automatic differentiation through g gives the gradient of g (not that of a
    #: surrogate).
    differentiable: bool = True
    #: Whether g is a loop of steps that can be counted. It then has ``with_steps``.
    iterative: bool = False
    #: Whether g takes its steps through ``loop``, so that an attacker can differentiate through any
    #: number of them (`ThroughDefense`).
    stepwise: bool = False
    #: Whether these steps follow the sign of a model's gradient. g then has ``attack`` and
    #: ``differentiated``, for the source `UnrolledTransform`.
    searches: bool = False
    #: Whether g asks the classifier that it stands before, see ``bound_to``.
    asks_classifier: bool = False
    #: Whether g searches on a model f_b, so that an attacker who knows its options can imitate it.
    has_f_b: bool = False
    #: Whether g draws one of many patterns that an attacker can try one by one. It then has
    #: ``pattern`` and ``sides``, for the sources `SinglePattern` and `EnsemblePattern`.
    draws_patterns: bool = False
    #: Sides after resizing that a pattern may have, in pixels, up to but without the canvas.
    sides: range = range(0)
    #: Whether g has the classifier answer for several versions of an image. It then has a
    #: ``predict`` of its own, and whoever writes one has the trait.
    votes: bool = False
    #: Gradient evaluations of g's own model that one image costs.
    gradients: int = 0
    #: Standard deviation, in pixel values, of the independent Gaussian noise that g adds to every
    #: pixel before it does anything else, and that nothing else depends on; None if there is none.
    #: The vote over this noise then has a certified radius [Cohen et al. 2019].
    certified_sigma: float | None = None
    #: The preset of ``--training`` that trains g's network; empty where g has none of that kind.
    #: g's arguments ``model`` and ``weights`` name the network and its file.
    trained_by: str = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Without the trait a chain would pass over it, and so would `ThroughDefense`.
        if "predict" in vars(cls) and cls.votes is False:
            cls.votes = True

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """g(images).

        Args:
            images: (B, C, H, W), pixel values in [0, 1].
            rng: streams of the images, (B,); None takes keys from torch's global generator, so that
                attack libraries that know nothing of streams can call a defended classifier as a
                plain module.

        Returns:
            (B, C, H', W').

        Raises:
            UserError: g returned something else.
        """
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        # g has a stream of its own, so the caller's stream stays as it is: same streams, same g. So
        # do the images, which are an attacker's points: g may write into a copy.
        handed_on = self.transform(images.clone(), rng.fold("defense"))
        if not isinstance(handed_on, Tensor) or handed_on.dim() != 4:
            raise UserError(f"defense {type(self).__name__}: {_instead(handed_on)}")
        return handed_on

    @staticmethod
    def loop(step: Callable[[State, int, Rng], State], state: State, steps: int, rng: Rng) -> State:
        """``state`` after so many steps: a loop that an attacker can differentiate through in
        memory that does not hold the activations of all steps.

        It is an ordinary loop, unless a source asks for another backward pass. A g that takes its
        steps in this way has the trait ``stepwise``.

        Args:
            step: ``step(state, number, rng)`` gives the next state, with a stream for this step
                alone. A source may call it twice, so it changes nothing outside of itself.
            state: the first state, a tensor or a plain tuple of tensors (no NamedTuple).
            steps: how many.
            rng: streams of the images, (B,); step ``number`` gets ``rng.fold(number)``.
        """
        return loop(step, state, steps, rng)

    def bound_to(self, behind: nn.Module) -> Defense:
        """The same defense before a classifier, for a g that asks the very classifier which it
        protects; any other g stays as it is.

        `DefendedClassifier` calls this once, whenever it is built. A g that was bound already stays
        with its classifier: whatever an attacker puts in place of f_a, g does not change.

        Args:
            behind: what stands behind g, images (B, C, H, W) to logits (B, K): the classifier, in a
                chain with the later defenses before it. g does not own it.
        """
        return self

    @property
    def parts(self) -> tuple[Defense, ...]:
        """The defenses of a chain, in their order; any other defense is its own only part."""
        return (self,)

    def rebuilt(self, change: Callable[[Defense], Defense]) -> Defense:
        """The same transformation with ``change(part)`` in place of each part; streams stay."""
        return change(self)

    def keeps_size(self, images: Tensor) -> bool:
        """Whether images (B, C, H, W) keep their size, tried on the first of them."""
        with torch.no_grad():
            rng = Rng.for_images(0, torch.zeros(1, dtype=torch.int64, device=images.device))
            return bool(self(images[:1], rng).shape[1:] == images.shape[1:])

    def identity_fits(self, images: Tensor) -> bool:
        """Whether the identity can stand for the derivative of the parts that have none: these
        parts keep the size of images (B, C, H, W).
        """
        return self.keeps_size(images)

    def with_steps(self, steps: int) -> Defense:
        """The same iterative transformation with another number of steps.

        Raises:
            UserError: this defense has no steps.
        """
        raise UserError(f"{type(self).__name__} is no iterative transformation, so it has no steps")

    def twin(self) -> Defense | None:
        """A differentiable defense that does almost what this one does, with the same streams; None
        where there is none.

        It is the attacker's: `TwinBackward` goes backward through it, and forward through this one.
        """
        return None

    @property
    def has_twin(self) -> bool:
        """Whether a part has a differentiable twin."""
        return any(part.twin() is not None for part in self.parts)

    def predict(self, classify: Classify, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Logits (B, K) of what stands behind g: by default its answer to one draw of g.

        A defense that classifies several versions of an image overrides this. It may hand them over
        in one batch, as copies of the whole batch behind one another, with `Rng.tile`.

        Args:
            classify: what stands behind g.
            images: (B, C, H, W), pixel values in [0, 1].
            rng: as for ``forward``.
        """
        return classify(self(images, rng), rng)

    def single_draw(self) -> Defense:
        """The same defense with one draw of the noise of ``certified_sigma`` a pass, where it votes
        on that noise.
        """
        return self

    def pattern(self, size: int | None, position: Position) -> Defense:
        """One of the patterns that g may draw, as a defense of its own, for an attacker to try.

        Args:
            size: side after resizing, in pixels; None resizes nothing.
            position: where the image stands in the padding.

        Raises:
            UserError: this defense draws no patterns.
        """
        raise UserError(
            f"{type(self).__name__} draws no patterns: this is for --defense randomization (in"
            " Python, RandomResizePad)"
        )

    @abstractmethod
    def transform(self, images: Tensor, rng: Rng) -> Tensor:
        """g(images) with the randomness of ``rng``; shapes as for ``forward``."""


def refuse_unasked(defense: Defense, base: type[Defense]) -> None:
    """Raise UserError for a subclass that writes a ``transform`` where ``base``, whose ``predict``
    it keeps, asks none.
    """
    kind = type(defense)
    if kind.transform is not base.transform and kind.predict is base.predict:
        raise UserError(
            f"defense {kind.__name__}: where {base.__name__} votes it does not ask its own"
            " transform, so what that does would be lost: write predict, or a Defense that stands"
            " in a Chain"
        )
