"""GenAttack: a genetic search by scores alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robusttrain.attacks.asking import Queried
from robusttrain.attacks.base import Attack, Cost, check_images, times
from robusttrain.attacks.parts.objectives import Margin, TargetedMargin, choose_targets
from robusttrain.attacks.parts.threats import Linf, Threat, per_image
from robusttrain.attacks.prepare import prepared
from robusttrain.attacks.queries import mean_log_probabilities
from robusttrain.core.checked import Count, Positive, Share, checked
from robusttrain.core.errors import OptionError, at_least
from robusttrain.core.labels import check_labels
from robusttrain.core.rng import Rng

#: So many generations without a new elite make a plateau.
PATIENCE = 100


@checked
@dataclass(frozen=True)
class GenAttack(Attack):
    """A population of perturbed images that breeds towards a target class (Alzantot et al. 2019,
    algorithm 1).

    Symbols: t target class, p the model's probabilities, N population, G generations, tau
    temperature, rho mutation probability, alpha mutation range, P plateaus so far. The first
    generation is uniform in the ball. Each one

    1. is judged by its fitness, log p_t - log sum_{i != t} p_i; the fittest member, the elite, goes
       on as it is;
    2. breeds N - 1 children of two parents each, drawn with probability softmax(fitness / tau); a
       pixel comes from the first parent with probability p_1 / (p_1 + p_2), p_i the parents'
       chances of having been drawn;
    3. mutates: each pixel of a child changes, with probability rho, by
       U(-alpha epsilon, alpha epsilon), and the child is projected back into the ball.

    ``adaptive`` (the paper's adaptive parameter scaling) starts with more mutation, and loses some
    with each plateau, 100 generations without a new elite: alpha = max(alpha, 0.4 * 0.9^P),
    rho = max(rho, 0.5 * 0.9^P).

    Untargeted, any wrong answer is a success, and the ``classes`` likeliest wrong classes are tried
    as targets one after another. Where no member succeeds, the one nearest to success comes back.

    On a deterministic model an image leaves as soon as a member of its population succeeds, at once
    if it is misclassified already, and the elite is not asked about twice. On a random model
    (`Queried.random`) p is a mean over ``votes`` draws, and no image leaves. New draws judge every
    generation, the elite included, so that luck does not keep it alive, and the last elite of each
    target is judged once more.

    Args:
        steps: G, for each target.
        population: N; at least 2.
        mutation_probability: rho, of each pixel of a child.
        mutation_range: alpha, in units of epsilon.
        temperature: tau; 0.3 in the released code.
        adaptive: whether rho and alpha start high and fall.
        target: "untargeted", or the class to reach: "least_likely", "second" (likeliest wrong one)
            or "random".
        classes: targets tried if untargeted.
        votes: draws of a random model's randomness behind each p; of no use for a deterministic
            one.
        threat: Linf.
    """

    steps: Count = 1000
    population: int = 4
    mutation_probability: Share = 0.05
    mutation_range: Positive = 0.25
    temperature: Positive = 0.3
    adaptive: bool = True
    target: Literal["untargeted", "least_likely", "second", "random"] = "untargeted"
    classes: Count = 3
    votes: Count = 1
    threat: Threat = field(default_factory=Linf)

    def __post_init__(self) -> None:
        at_least("population", self.population, 2)
        if self.threat.norm != "linf":
            raise OptionError(
                "threat", self.threat, "must be Linf: mutation ranges are those of a cube"
            )

    @property
    def targets(self) -> int:
        """Target classes tried for each image."""
        return self.classes if self.target == "untargeted" else 1

    def scaled(self, effort: float) -> GenAttack:
        return replace(self, steps=times(self.steps, effort))

    def cost(self) -> Cost:
        """An upper bound: images leave on success, and deterministic models see an elite once."""
        # The clean image, and the last elite of each target once more.
        return Cost(0, self.votes * (1 + self.targets * (self.steps * self.population + 1)))

    def run(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor:
        log_p = mean_log_probabilities(source, images, rng.fold("clean"), self.votes)
        if self.target == "untargeted":
            wrong = log_p.scatter(1, labels[:, None], -torch.inf)
            goals = wrong.topk(min(self.classes, wrong.shape[1] - 1), dim=1).indices
        else:
            goals = choose_targets(log_p, labels, rng.fold("target"), self.target)[:, None]
        best, margin = images.clone(), self.margin(log_p, labels, goals[:, 0])
        random = Queried.of(source).random
        for i in range(goals.shape[1]):
            here = (
                torch.arange(len(images), device=images.device)
                if random
                else (margin <= 0).nonzero().squeeze(1)
            )
            if not len(here):
                break
            evolved, reached = self.evolve(
                source, images[here], labels[here], goals[here, i], rng[here].fold(i).fold("evolve")
            )
            better = reached > margin[here]
            best[here] = torch.where(per_image(better), evolved, best[here])
            margin[here] = torch.where(better, reached, margin[here])
        return best

    def goals(self, source: nn.Module, images: Tensor, labels: Tensor, rng: Rng) -> Tensor | None:
        if self.target == "untargeted":
            return None
        images, labels = check_images(images), check_labels(labels, images)
        with prepared(source):
            log_p = mean_log_probabilities(source, images, rng.fold("clean"), self.votes)
            return choose_targets(log_p, labels, rng.fold("target"), self.target)

    def margin(self, log_p: Tensor, labels: Tensor, goal: Tensor) -> Tensor:
        """(B,): positive exactly where log-probabilities (B, K) are a success."""
        return (
            Margin()(log_p, labels)
            if self.target == "untargeted"
            else TargetedMargin()(log_p, goal)
        )

    def evolve(
        self, source: nn.Module, images: Tensor, labels: Tensor, goal: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """The loop, towards target classes ``goal`` (B,).

        Returns:
            For each image the member nearest to success, (B, C, H, W), and its margin (B,).
        """
        random, epsilon = Queried.of(source).random, self.threat.epsilon
        best, best_margin = images.clone(), images.new_full((len(images),), -torch.inf)
        here = torch.arange(len(images), device=images.device)  # the images that are still attacked
        x, n = images, self.population
        noise = rng.fold("start").uniform((n, *images.shape[1:]), -epsilon, epsilon)
        population = self.project(images[:, None] + noise.to(images.dtype), images)
        fitness = images.new_empty(len(images), 0)  # of the members that need not be asked again
        quiet = plateaus = torch.zeros_like(here)

        for t in range(self.steps):
            streams = rng[here].fold(t)
            judged, margins = self.judge(
                source,
                population[:, fitness.shape[1] :],
                labels[here],
                goal[here],
                streams.fold("judge"),
            )
            fitness = torch.cat([fitness, judged], dim=1)
            elite = fitness.argmax(dim=1)
            if not random:
                # Not the elite alone: untargeted, another member may have reached another wrong
                # class.
                margin, first = margins.max(dim=1)
                newcomers = population[:, n - margins.shape[1] :]
                better = margin > best_margin[here]
                best[here] = torch.where(
                    per_image(better), _take(newcomers, first[:, None])[:, 0], best[here]
                )
                best_margin[here] = torch.where(better, margin, best_margin[here])
                stay = (best_margin[here] <= 0).nonzero().squeeze(1)
                if not len(stay):
                    break
                if len(stay) < len(here):
                    here, x, population, fitness, elite, quiet, plateaus = (
                        each[stay]
                        for each in (here, x, population, fitness, elite, quiet, plateaus)
                    )
                    streams = streams[stay]
            if t == self.steps - 1:
                break

            # An elite that stays is member 0.
            quiet = torch.where(elite == 0, quiet + 1, 0)
            plateaus = plateaus + (quiet >= PATIENCE)
            quiet = torch.where(quiet >= PATIENCE, 0, quiet)
            children = self.breed(population, fitness, streams.fold("breed"))
            children = self.mutate(children, plateaus, streams.fold("mutate"))
            population = torch.cat(
                [_take(population, elite[:, None]), self.project(children, x)], dim=1
            )
            fitness = fitness.gather(1, elite[:, None])[:, : 0 if random else 1]

        if random:
            best = _take(population, elite[:, None])[:, 0]
            _, margins = self.judge(source, best[:, None], labels, goal, rng.fold("last"))
            best_margin = margins[:, 0]
        return best, best_margin

    def project(self, population: Tensor, images: Tensor) -> Tensor:
        """Members (B, n, C, H, W), projected into the threat around their image."""
        flat = self.threat.project(
            population.flatten(0, 1), images.repeat_interleave(population.shape[1], dim=0)
        )
        return flat.view_as(population)

    def judge(
        self, source: nn.Module, population: Tensor, labels: Tensor, goal: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Fitness and margins (B, n) of members (B, n, C, H, W)."""
        batch, n = population.shape[:2]
        # Copy after copy of the batch, as streams are
        members = population.transpose(0, 1).flatten(0, 1)
        log_p = mean_log_probabilities(source, members, rng.tile(n), self.votes)
        goal = goal.repeat(n)
        p_t = log_p.gather(1, goal[:, None]).squeeze(1)
        fitness = p_t - log_p.scatter(1, goal[:, None], -torch.inf).logsumexp(dim=1)
        margins = self.margin(log_p, labels.repeat(n), goal)
        return fitness.view(n, batch).T, margins.view(n, batch).T

    def breed(self, population: Tensor, fitness: Tensor, rng: Rng) -> Tensor:
        """N - 1 children (B, N - 1, C, H, W)."""
        chance = (fitness / self.temperature).softmax(dim=1)
        # A member is drawn where a uniform number falls into its share of [0, 1).
        drawn = rng.fold("parents").uniform((2 * (self.population - 1), 1))
        parents = (drawn >= chance.cumsum(dim=1)[:, None]).sum(dim=2).clamp_max(self.population - 1)
        one, other = parents.chunk(2, dim=1)
        p_1, p_2 = chance.gather(1, one), chance.gather(1, other)
        # Rounding may draw a member whose chance is zero, twice.
        share = p_1 / (p_1 + p_2).clamp_min(torch.finfo(chance.dtype).tiny)
        from_one = (
            rng.fold("crossover").uniform(tuple(population[0, 1:].shape))
            < share[:, :, None, None, None]
        )
        return torch.where(from_one, _take(population, one), _take(population, other))

    def mutate(self, children: Tensor, plateaus: Tensor, rng: Rng) -> Tensor:
        """Children (B, n, C, H, W) with noise in some pixels; ``plateaus`` is P, (B,)."""
        fall = (
            0.9 ** plateaus.float()
            if self.adaptive
            else torch.zeros_like(plateaus, dtype=torch.float32)
        )
        rho = (0.5 * fall).clamp_min(self.mutation_probability).view(-1, 1, 1, 1, 1)
        alpha = (0.4 * fall).clamp_min(self.mutation_range).view(-1, 1, 1, 1, 1)
        # One number says both whether and how: a uniform number below rho, divided by rho, is
        # uniform again.
        number = rng.uniform(tuple(children.shape[1:]))
        noise = (
            (2 * number / rho.clamp_min(torch.finfo(number.dtype).tiny) - 1)
            * alpha
            * self.threat.epsilon
        )
        return torch.where(number < rho, children + noise.to(children.dtype), children)


def _take(population: Tensor, which: Tensor) -> Tensor:
    """Members (B, m, C, H, W) by number, ``which`` (B, m)."""
    return population[torch.arange(len(population), device=population.device)[:, None], which]
