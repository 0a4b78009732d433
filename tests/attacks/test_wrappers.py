"""Restarts, cascades, best of several: who goes on, what comes back, what it costs, and luck on
random models.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from robusttrain.attacks import (
    APGD,
    FAB,
    L2,
    Attack,
    Average,
    ClassifierOnly,
    Cost,
    CrossEntropy,
    GenAttack,
    IdentityBackward,
    Linf,
    Margin,
    MeanStart,
    ProjectedGradient,
    Restarts,
    Several,
    Square,
    TargetedCrossEntropy,
    TargetedDLR,
)
from robusttrain.config.attacks import scenarios
from robusttrain.core.errors import OptionError, UserError
from robusttrain.defenses import AdversarialTransform, Defense
from robusttrain.evaluation import Engine, Scenario, results
from robusttrain.models.defended import DefendedClassifier

#: One random point of the ball: a run that depends on nothing but its streams.
NOISE = ProjectedGradient(0, step_size=0.1)


@dataclass(frozen=True)
class Shift(Attack):
    """Adds an amount to every pixel, and notes how many images it was given."""

    amount: float
    threat: Linf = field(default_factory=lambda: Linf(1.0))
    calls: list[int] = field(default_factory=list)

    def cost(self) -> Cost:
        return Cost(0, 0)

    def run(self, source, images, labels, rng):
        self.calls.append(len(images))
        return self.threat.project(images + self.amount, images)


class Bright(nn.Module):
    """Class 1 where the first pixel is above 0.5, by a margin of its distance from there."""

    def forward(self, images):
        a = images[:, 0, 0, 0] - 0.5
        return torch.stack([torch.zeros_like(a), a], dim=1)


def grey(*values: float) -> tuple[Tensor, Tensor]:
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return x, torch.zeros(len(values), dtype=torch.int64)


def test_in_a_cascade_only_survivors_go_on(streams):
    x, labels = grey(0.7, 0.45, 0.35, 0.1)
    members = [Shift(0.1), Shift(0.2), Shift(0.3)]
    found = Several(members, threat=Linf(1.0))(Bright(), x, labels, streams(4))
    assert [member.calls for member in members] == [[3], [2], [1]]
    # The first is wrong as it stands; the last is never broken, and the largest shift comes nearest
    # to it.
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.55, 0.55, 0.4])


def test_of_the_best_all_run_and_the_largest_margin_counts(streams):
    x, labels = grey(0.7, 0.45, 0.35, 0.1)
    members = [Shift(0.3), Shift(0.4), Shift(0.2)]
    found = Several(members, "best", threat=Linf(1.0))(Bright(), x, labels, streams(4))
    assert [member.calls for member in members] == [[3], [3], [3]]
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.85, 0.75, 0.5])


@pytest.mark.parametrize("keep", ["first", "best"])
def test_restarts_are_independent_draws(keep, streams):
    """One start in 20 is above: after n starts a share of 1 - 0.95^n."""
    x, labels = torch.full((2000, 1, 2, 2), 0.41), torch.zeros(2000, dtype=torch.int64)
    for restarts in (1, 5, 20):
        attack = Restarts(NOISE, restarts, keep, threat=Linf(0.1))
        found = attack(Bright(), x, labels, streams(2000))
        share = Bright()(found).argmax(1).float().mean().item()
        assert share == pytest.approx(1 - 0.95**restarts, abs=4 * 0.5 / 2000**0.5)
        assert attack.threat.distance(found, x).max() <= 0.1 + 1e-6


def test_the_best_restart_is_the_largest_margin_of_all(curved, images, streams):
    model, x = curved(), images(8)
    labels = model(x).argmax(1)
    runs = [NOISE.run(model, x, labels, streams(8).fold(number)) for number in range(5)]
    found = Restarts(NOISE, 5, "best")(model, x, labels, streams(8))
    expected = torch.stack([Margin()(model(each), labels) for each in runs]).amax(dim=0)
    torch.testing.assert_close(Margin()(model(found), labels), expected)


class Doubtful(nn.Module):
    """Wrong in a share of draws that is the first pixel's value."""

    takes_rng = True

    def forward(self, images, rng):
        wrong = (rng.uniform(()) < images[:, 0, 0, 0]).float()
        return torch.stack([1 - wrong, wrong], dim=1)


def test_on_a_random_model_only_what_is_wrong_in_all_draws_is_spared(streams):
    x, labels = grey(*[0.0] * 50)
    members = [Shift(0.8), Shift(1.0), Shift(0.5)]
    found = Several(members, threat=Linf(1.0))(Doubtful(), x, labels, streams(50))
    calls = [member.calls[0] for member in members if member.calls]
    assert calls[0] == 50
    assert 45 <= calls[1] <= 50  # 0.8^30 is one in 800
    assert len(calls) == 2  # the second leaves nobody
    assert (found[:, 0, 0, 0] >= 0.8).all()


def test_on_a_random_model_the_member_that_is_worse_in_truth_wins(streams):
    x, labels = grey(*[0.0] * 200)
    for shifts in ((0.5, 0.8), (0.8, 0.5)):
        attack = Several([Shift(shift) for shift in shifts], "best", threat=Linf(1.0))
        found = attack(Doubtful(), x, labels, streams(200))
        assert (found[:, 0, 0, 0] > 0.7).float().mean() > 0.97
    weak_first = Several([Shift(0.5), Shift(0.8)], "best", votes=1, threat=Linf(1.0))
    assert (weak_first(Doubtful(), x, labels, streams(200))[:, 0, 0, 0] > 0.7).float().mean() < 0.5


class Coin(Defense):
    """Replaces one image in ten by a black one."""

    random = True

    def transform(self, images, rng):
        return images * (rng.uniform((1, 1, 1)) >= 0.1)


def test_choosing_among_runs_that_do_nothing_does_not_lower_the_accuracy():
    """The choice is made on draws that do not score: 20 runs on a model that is right in 90 % leave
    90 %.
    """

    class Light(nn.Module):
        def forward(self, images):
            a = images[:, 0, 0, 0] - 0.3
            return torch.stack([a, -a], dim=1)

    target = DefendedClassifier(Coin(), Light())
    attack = Restarts(NOISE, 20, "best", threat=Linf(0.01))
    engine = Engine(target, {"noise": Scenario(attack, IdentityBackward())}, draws=10)
    x = torch.full((300, 1, 2, 2), 0.7)
    records, seconds = engine.run(x, torch.zeros(300, dtype=torch.int64), torch.arange(300))
    found = results(records, engine, seconds)
    assert found["attacks"]["noise"]["robust_accuracy"] == pytest.approx(0.9, abs=0.02)


WRAPPED = {
    "restarts": Restarts(APGD(3, threat=Linf(0.5)), 3, threat=Linf(1e-5)),
    "cascade": Several([APGD(3), FAB(2, targets=2), Square(30, votes=3)], threat=Linf(1e-5)),
    "best": Several([APGD(3), APGD(2, gradient=Average(3))], "best", 4, Linf(1e-5)),
    "nested": Several([Restarts(APGD(2), 2), NOISE], threat=Linf(1e-5)),
}


@pytest.mark.parametrize("random_model", [False, True])
@pytest.mark.parametrize("attack", WRAPPED.values(), ids=WRAPPED.keys())
def test_declared_cost_bounds_what_the_model_sees(
    attack, random_model, curved, random_linear, counting, images, streams
):
    model = counting(random_linear(10) if random_model else curved(10))
    model.random = random_model
    if random_model:  # then the draws only scale the logits, and no image is misclassified
        model.model.bias.data.zero_()
    x = images()
    labels = model.model(x).argmax(1)
    attack(model, x, labels, streams())
    cost = attack.cost()
    assert model.gradients == 4 * cost.gradients
    # Square on random models counts in whole rounds; on others a vote is one query.
    slack = 4 * 30 if random_model else 4 * (cost.queries - 2)
    assert 4 * cost.queries - slack <= model.queries <= 4 * cost.queries


@pytest.mark.parametrize("attack", WRAPPED.values(), ids=WRAPPED.keys())
def test_seeds_batches_and_threats(attack, curved, random_linear, images, streams):
    attack = replace(attack, threat=Linf(0.02))
    for model in (curved(), random_linear(4)):
        labels = torch.arange(8) % 3
        whole = attack(model, images(8), labels, streams(8))
        assert attack.threat.distance(whole, images(8)).max() <= 0.02 + 1e-6
        assert torch.equal(attack(model, images(8), labels, streams(8)), whole)
        order = torch.tensor([6, 0, 3])
        part = attack(model, images(8)[order], labels[order], streams(8)[order])
        assert ((part - whole[order]).abs() < 1e-5).double().mean() > 0.99
        assert (attack(model, images(8), labels, streams(8, seed=1)) - whole).abs().max() > 1e-5


def test_goals_are_what_all_members_strive_for(curved, images, streams):
    targeted = ProjectedGradient(1, step_size=0.1, objective=TargetedCrossEntropy("least_likely"))
    random = replace(targeted, objective=TargetedCrossEntropy("random"))
    model, x = curved(), images(8)
    labels = model(x).argmax(1)
    least = model(x).argmin(1)
    for attack in (Restarts(targeted), Several([targeted, targeted])):
        assert torch.equal(attack.goals(model, x, labels, streams(8)), least)
    for attack in (Restarts(random), Several([targeted, NOISE]), Several([NOISE])):
        assert attack.goals(model, x, labels, streams(8)) is None


def test_members_checks_and_questions_to_g_are_carried_through(curved):
    start = MeanStart(draws=2, steps=1, step_size=0.1)
    for attack in (Restarts(start, 2), Several([NOISE, start])):
        assert attack.asks_g
        with pytest.raises(UserError, match="no g to start from"):
            attack.check(curved())
        target = DefendedClassifier(AdversarialTransform(curved(), steps=1), curved(seed=1))
        attack.check(ClassifierOnly()(target))
    assert not Restarts(NOISE).asks_g


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Several([]), "attacks = \\[\\]: name at least one"),
        (
            lambda: Several([NOISE, GenAttack()], threat=L2()),
            r"attacks\[1\]\.threat = .*must be Linf",
        ),
        (lambda: Several([NOISE], "worst"), "keep = 'worst': must be one of first, best"),
        (lambda: Restarts(NOISE, 0), "restarts = 0: must be at least 1"),
        (lambda: Restarts(NOISE, votes=0), "votes = 0"),
        (lambda: Restarts(GenAttack(), threat=L2()), r"attack\.threat"),
    ],
)
def test_bad_options_are_one_line(make, words):
    with pytest.raises(OptionError, match=words):
        make()


# Presets: members by name.


def written(folder, members: str, source: str = "Target", name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    source = f"source: {{class_path: robusttrain.attacks.{source}}}"
    path.write_text(
        f"class_path: robusttrain.attacks.Several\ninit_args: {{attacks: {members}}}\n{source}\n"
    )
    return str(path)


def test_members_are_named_by_their_presets(tmp_path):
    found = scenarios([written(tmp_path, "[pgd, bpda-i]", "IdentityBackward")], epsilon=0.1)["mine"]
    assert found.source == IdentityBackward()
    assert [member.steps for member in found.attack.attacks] == [20, 50]
    assert {member.threat for member in found.attack.members} == {Linf(0.1)}
    nested = written(tmp_path, f"[{written(tmp_path, '[fgsm]', name='inner')}, pgd]")
    assert scenarios([nested])["mine"].attack.attacks[0].attacks[0].steps == 1


def test_overrides_reach_members_by_their_number():
    overrides = [
        ("autoattack.attacks.2.steps", "7"),
        ("attacks.3.queries", "99"),
        ("threat.epsilon", "0.2"),
    ]
    found = scenarios(["autoattack"], overrides)["autoattack"].attack
    assert (found.attacks[2].steps, found.attacks[3].queries, found.attacks[0].steps) == (
        7,
        99,
        100,
    )
    assert found.members[2].threat == Linf(0.2)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            "[pgd, bpda-i]",
            "bpda-i needs robusttrain.attacks.IdentityBackward: name that under 'source'",
        ),
        ("[pdg]", "did you mean pgd"),
        ("[3]", "mine"),
        ("pgd", "mine"),
    ],
)
def test_members_that_do_not_fit_are_one_line(tmp_path, members, words):
    with pytest.raises(UserError, match=words) as caught:
        scenarios([written(tmp_path, members)])
    assert "\n" not in str(caught.value)


def test_a_preset_that_holds_itself_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "configs" / "attack").mkdir(parents=True)
    written(tmp_path / "configs" / "attack", "[loop]", name="loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="preset loop is a member of itself"):
        scenarios(["loop"])


@pytest.mark.parametrize(
    "change", [("attacks.9.steps", "7"), ("steps", "7"), ("attacks.0.stepz", "7")], ids=str
)
def test_overrides_that_reach_nothing_are_one_line(change):
    with pytest.raises(UserError, match="attacks|autoattack") as caught:
        scenarios(["autoattack"], [change])
    assert "\n" not in str(caught.value)


# AutoAttack.


def small(name: str, epsilon: float) -> Attack:
    """The preset with a fraction of its budget."""
    overrides = [("attacks.0.steps", "20"), ("attacks.1.steps", "20"), ("attacks.2.steps", "15")]
    overrides += [("attacks.3.queries", "150")]
    return scenarios([name], overrides, epsilon)[name].attack


def test_autoattack_of_torchattacks(patterns, streams):
    """The same four attacks with the same budgets leave the same accuracy, within one image in a
    hundred.
    """
    torchattacks = pytest.importorskip("torchattacks")
    model, x, labels = patterns
    epsilon = 0.035
    options = {"norm": "Linf", "eps": epsilon}
    pieces = [
        torchattacks.APGD(model, steps=20, loss="ce", **options),
        torchattacks.APGDT(model, steps=20, n_classes=4, **options),
        torchattacks.FAB(model, steps=15, multi_targeted=True, n_classes=4, **options),
        torchattacks.Square(model, n_queries=150, **options),
    ]
    theirs = torchattacks.MultiAttack(pieces)(x, labels)
    attack = small("autoattack", epsilon)
    found = attack(model, x, labels, streams(len(x)))
    left, left_theirs = (
        (model(points).argmax(1) == labels).float().mean().item() for points in (found, theirs)
    )
    assert 0.1 < left < 0.95
    assert abs(left - left_theirs) <= 0.01
    # No member alone leaves less.
    for member in attack.members[:2]:
        alone = member(model, x, labels, streams(len(x)))
        assert left <= (model(alone).argmax(1) == labels).float().mean().item() + 0.01


def test_the_standard_and_the_random_version_are_those_of_the_paper():
    standard, rand = (
        found.attack for found in scenarios(["autoattack", "autoattack-rand"]).values()
    )
    assert list(standard.members) == [
        APGD(100),
        APGD(100, targets=9, objective=TargetedDLR()),
        FAB(100),
        Square(5000),
    ]
    assert [type(member.objective).__name__ for member in rand.members] == ["CrossEntropy", "DLR"]
    for member in rand.members:
        assert (member.steps, member.gradient, member.restarts) == (100, Average(20), 1)
    assert rand.members[0].objective == CrossEntropy()
    assert standard.keep == rand.keep == "first"


@pytest.mark.parametrize("attack", WRAPPED.values(), ids=WRAPPED.keys())
def test_members_are_in_the_wrappers_threat_and_move_with_it(attack):
    moved = attack.within(Linf(0.07))
    assert moved.threat == Linf(0.07)
    assert moved.members
    assert all(member.threat == Linf(0.07) for member in moved.members)
    assert APGD(3).members == ()


def test_an_attack_without_a_threat_of_its_own_cannot_be_moved():
    class Fixed(Attack):
        threat = Linf(0.1)

        def run(self, source, images, labels, rng):
            return images

        def cost(self):
            return Cost(0, 0)

    with pytest.raises(OptionError, match="Fixed"):
        Fixed().within(Linf(0.2))
