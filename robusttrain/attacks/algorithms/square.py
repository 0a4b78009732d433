"""Square: random search with square-shaped changes, for attackers who see only the model's
answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from robusttrain.attacks.answers import misclassified, names_a_class
from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import LEAST_QUERIES, Attack, Cost, times
from robusttrain.attacks.parts.loss import each_image
from robusttrain.attacks.parts.objectives import Margin, Objective, repeated
from robusttrain.attacks.parts.threats import Linf, Threat, need_norm, per_image
from robusttrain.attacks.queries import ask
from robusttrain.core.checked import Count, Share, checked
from robusttrain.core.errors import at_least
from robusttrain.core.rng import Rng
from robusttrain.models.nearby import remembering

#: Iterations, of 10,000, after which p is halved once more (as released; AutoAttack takes the
#: same).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TINY = torch.finfo(torch.float32).tiny


@lru_cache
@torch.inference_mode(False)  # an inference tensor would outlive its context here
def eta(side: int, device: torch.device) -> Tensor:
    """The L2 update of one channel, (side, side): two bumps of opposite sign, of length 1
    (algorithm 3).

    eta^(h1, h2) falls off with the distance d from its centre, as the sum of 1 / j^2 for j from d +
    1 to n + 1, where d is the larger of the vertical and the horizontal distance, and n half the
    longer side, rounded down. The update of side h is eta^(h, k) beside -eta^(h, h - k), with k = h
    // 2.
    """

    def bump(rows: int, columns: int) -> Tensor:
        down = (torch.arange(rows, device=device) - rows // 2).abs()
        across = (torch.arange(columns, device=device) - columns // 2).abs()
        # tail[d] = sum of 1 / j^2 for j from d + 1 on
        j = torch.arange(1, max(rows, columns) // 2 + 2, dtype=torch.float32, device=device)
        tail = (1.0 / j**2).flip(0).cumsum(0).flip(0)
        return tail[torch.maximum(down[:, None], across[None, :])]

    both = torch.cat([bump(side // 2, side), -bump(side - side // 2, side)])
    return both / both.norm()


def _signs(rng: Rng, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape): -1 or 1, each with probability 1/2."""
    return (2 * rng.integers(shape, 0, 2) - 1).to(torch.float32)


def _length(change: Tensor) -> Tensor:
    """(B, 1, 1, 1): Euclidean lengths."""
    return per_image(change.flatten(1).norm(dim=1))


@checked
@dataclass(frozen=True)
class Square(Attack):
    """Random search with squares (Andriushchenko et al. 2020, "Square Attack", algorithms 1-3).

    Symbols: x the image, x_best the best point so far, f the loss (maximised here: `Margin` is the
    negative of the paper's), p the share of pixels that a square covers, h = round(sqrt(p w^2)) its
    side, nu = x_best - x.

    - Linf: x_best starts as x with vertical stripes of +-epsilon. Each iteration sets one random
      square of x_best to x +- epsilon, one sign for each channel (algorithm 2).
    - L2: x_best starts with 5 x 5 tiles of the shape `eta`. Each iteration moves the budget of one
      random window into another, in the shape of what is there plus or minus eta, and spends what
      clipping left unused (algorithm 3).

    A square stays if f rises. p is halved after 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000
    and 8,000 iterations. The first two queries, on the image itself, tell whether the model is
    random for that image.

    - If not, the search ends for the image as soon as it is misclassified, and the image leaves the
      batch.
    - If so, one misclassified draw is luck. The largest of thousands of noisy estimates is luck,
      too, and the search would soon accept nothing more. So f is the mean over ``votes`` draws, and
      each iteration judges x_best anew, on the same draws as its rival. The search goes on to the
      end; one iteration costs 2 ``votes`` queries.

    Args:
        queries: the most forward passes for an image, everything counted.
        p: p at the start; 0.8 in AutoAttack, 0.05 (Linf) and 0.1 (L2) in the paper on ImageNet.
        rescale: whether the schedule of p is stretched to the number of iterations, instead of made
            for 10,000. AutoAttack does not rescale its 5,000.
        votes: draws that judge a point of a random model; fewer where ``queries`` would not do for
            one iteration.
        threat: where adversarial images may go; Linf or L2.
        objective: f.
    """

    queries: int = 5000
    p: Share = 0.8
    rescale: bool = False
    votes: Count = 10
    threat: Threat = field(default_factory=Linf)
    objective: Objective = field(default_factory=Margin)

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 4)
        need_norm(self, self.threat, ("linf", "l2"))

    def scaled(self, effort: float) -> Square:
        # One iteration of a random model, at least.
        least = max(LEAST_QUERIES, 2 * self.votes + 3)
        return replace(self, queries=times(self.queries, effort, least))

    def with_draws(self, least: int) -> Square:
        # As many iterations on a random model as before: each costs its votes.
        votes = max(2 * self.votes, least)
        asked = 2 + int(self.objective.asks)
        queries = asked + math.ceil((self.queries - asked) * votes / self.votes)
        return replace(self, votes=votes, queries=queries)

    def cost(self) -> Cost:
        """An upper bound: images leave when they are misclassified."""
        return Cost(gradients=0, queries=self.queries)

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        logits, random = Queried.of(source).asked_twice(images, rng.fold("ask"))
        named = names_a_class(logits)
        goal = self.objective.aim(source, images, labels, rng.fold("aim"))
        best = self.start(images, rng.fold("start"))
        searches = ((~random, self.search), (random, self.search_random))
        for chosen, search in searches:
            which = chosen.nonzero().squeeze(1)
            if len(which):
                searched = search(
                    *(source, best[which], images[which], labels[which], goal[which]),
                    *(named[which], rng[which]),
                )
                best = best.index_copy(0, which, searched)
        return best

    def search(
        self,
        source: nn.Module,
        best: Tensor,
        images: Tensor,
        labels: Tensor,
        goal: Tensor,
        named: Tensor,
        rng: Rng,
    ) -> Tensor:
        """Algorithm 1, for a deterministic model: from x_best = ``best`` to the last x_best,
        (B, C, H, W).
        """
        iterations = self.queries - 2 - int(self.objective.asks) - 1
        result, place = best.clone(), torch.arange(len(images), device=images.device)
        f_best = images.new_full((len(images),), -torch.inf)
        with remembering() as memory:  # a small square changes little of what a network computes
            for i in range(iterations + 1):
                # The first round judges the start itself: nothing is below minus infinity.
                x_new = (
                    self.propose(best, images, self.side(i - 1, iterations, images), rng.fold(i))
                    if i
                    else best
                )
                streams = rng.fold("model").fold(i)
                f, wrong = self._judge(source, x_new, labels, goal, named, streams, votes=1)
                wrong = wrong > 0
                accepted = (f > f_best) | wrong
                memory.keep(accepted)
                best = torch.where(per_image(accepted), x_new, best)
                f_best = torch.where(accepted, f, f_best)
                # The one place where the host must wait for the device: it has to know the size of
                # the next batch.
                left = (~wrong).nonzero().squeeze(1)
                if len(left) < len(best):
                    memory.among(left)
                    result = result.index_copy(0, place, best)
                    place, best, f_best = place[left], best[left], f_best[left]
                    images, labels, goal = images[left], labels[left], goal[left]
                    named, rng = named[left], rng[left]
                    if not len(left):
                        return result
        return result.index_copy(0, place, best)

    def search_random(
        self,
        source: nn.Module,
        best: Tensor,
        images: Tensor,
        labels: Tensor,
        goal: Tensor,
        named: Tensor,
        rng: Rng,
    ) -> Tensor:
        """Algorithm 1, for a random model: each iteration judges x_best and its rival on the same,
        new draws.
        """
        left = self.queries - 2 - int(self.objective.asks)
        votes = max(1, min(self.votes, left // 2))  # rather one iteration by few than none
        iterations = left // (2 * votes)
        for i in range(1, iterations + 1):
            x_new = self.propose(best, images, self.side(i - 1, iterations, images), rng.fold(i))
            streams = rng.fold("model").fold(i)
            f, _ = self._judge(source, x_new, labels, goal, named, streams, votes)
            f_best, _ = self._judge(source, best, labels, goal, named, streams, votes)
            best = torch.where(per_image(f > f_best), x_new, best)
        return best

    def _judge(
        self,
        source: nn.Module,
        points: Tensor,
        labels: Tensor,
        goal: Tensor,
        named: Tensor,
        rng: Rng,
        votes: int,
    ) -> tuple[Tensor, Tensor]:
        """Mean loss (B,), minus infinity where it is NaN, and the share (B,) of draws that are
        misclassified; so is an answer that names no class, if the model names one of the image
        itself, as ``named`` (B,) bool says.
        """
        logits = ask(source, points, rng, votes)
        wrong = misclassified(logits, labels, named)
        f = each_image(self.objective, logits.flatten(0, 1), repeated(goal, votes))
        f = f.view(votes, len(points)).mean(dim=0)
        return torch.where(f.isnan(), -torch.inf, f), wrong.to(f.dtype).mean(dim=0)

    def side(self, i: int, iterations: int, images: Tensor) -> int:
        """h: the side of the square in iteration ``i`` (from 0) of ``iterations``, in pixels."""
        if self.rescale:
            i = int(i / iterations * 10000)
        height, width = images.shape[-2:]
        p = self.p / 2 ** sum(i > halving for halving in HALVINGS)
        least = 3 if self.threat.norm == "l2" else 1  # two bumps need room
        return min(max(round(math.sqrt(p * height * width)), least), height, width)

    def start(self, images: Tensor, rng: Rng) -> Tensor:
        """The first x_best, (B, C, H, W)."""
        _, channels, height, width = images.shape
        if self.threat.norm == "linf":
            return self.threat.project(
                images + self.threat.epsilon * _signs(rng, (channels, 1, width)), images
            )
        side = max(1, min(height, width) // 5)
        rows, columns = min(5, height // side), min(5, width // side)
        shape = eta(side, images.device)
        upright = rng.fold("turn").integers((1, rows, columns), 0, 2).bool()
        signs = _signs(rng, (channels, rows, columns))

        def spread(values: Tensor) -> Tensor:
            return values.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)

        tiles = torch.where(
            spread(upright), shape.repeat(rows, columns), shape.T.repeat(rows, columns)
        ) * spread(signs)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        nu = torch.zeros_like(images)
        nu[:, :, top : top + rows * side, left : left + columns * side] = tiles
        return self.threat.project(images + self.threat.epsilon * nu / _length(nu), images)

    def propose(self, best: Tensor, images: Tensor, side: int, rng: Rng) -> Tensor:
        """x_best with one square of ``side`` pixels changed, (B, C, H, W), at a place of its own in
        each image.
        """
        if self.threat.norm == "linf":
            window = _window(images, side, _corner(images, side, rng))
            colour = 2 * self.threat.epsilon * _signs(rng, (images.shape[1], 1, 1))
            # 2 epsilon away from anywhere in the ball, and projected, is x + epsilon or x -
            # epsilon.
            return self.threat.project(torch.where(window, best + colour, best), images)
        return self.threat.project(images + self._move_budget(best - images, side, rng), images)

    def _move_budget(self, nu: Tensor, side: int, rng: Rng) -> Tensor:
        """Algorithm 3: the budget of window W2 goes to window W1; nu (B, C, H, W) to the new nu."""
        channels, width = nu.shape[1], nu.shape[3]
        corner = _corner(nu, side, rng)
        first, second = _window(nu, side, corner), _window(nu, side, _corner(nu, side, rng))
        shape = eta(side, nu.device)
        # (B, 1, h, h)
        shape = torch.where(per_image(rng.integers((), 0, 2)).bool(), shape, shape.T)
        # W1 as an image of its own, (B, C, h, h), by the places of its pixels in the flattened
        # image.
        pixels = torch.arange(side, device=nu.device)
        places = (corner[0] + pixels)[:, :, None] * width + (corner[1] + pixels)[:, None, :]
        places = places.flatten(1)[:, None].expand(-1, channels, -1)
        there = nu.flatten(2).gather(2, places).view(-1, channels, side, side)

        def norm(values: Tensor) -> Tensor:  # of each channel, (B, C, 1, 1)
            return values.flatten(2).norm(dim=2)[:, :, None, None]

        mixed = _signs(rng, (channels, 1, 1)) * shape + there / norm(there).clamp_min(_TINY)
        unused = (self.threat.epsilon**2 - _length(nu) ** 2).clamp_min(0)
        budget = (norm(nu * (first | second)) ** 2 + unused / channels).sqrt()
        moved = mixed / norm(mixed).clamp_min(_TINY) * budget
        rest = torch.where(second, torch.zeros_like(nu), nu)
        return rest.flatten(2).scatter(2, places, moved.flatten(2)).view_as(nu)


def _corner(images: Tensor, side: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """Top and left, (B, 1) each, of a square of ``side`` pixels at a uniformly random place of each
    image.
    """
    height, width = images.shape[-2:]
    return rng.integers((1,), 0, height - side + 1), rng.integers((1,), 0, width - side + 1)


def _window(images: Tensor, side: int, corner: tuple[Tensor, Tensor]) -> Tensor:
    """(B, 1, H, W) bool: the pixels of each image's square."""
    inside = []
    for first, size in zip(corner, images.shape[-2:], strict=True):
        place = torch.arange(size, device=images.device)
        inside.append((place >= first) & (place < first + side))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
