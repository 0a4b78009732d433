"""Parts of the audit on models with known answers."""

import pytest
import torch

from robusttrain import DefendedClassifier
from robusttrain.attacks import (
    APGD,
    L2,
    Attack,
    Average,
    AverageLogits,
    Backprop,
    Cost,
    GenAttack,
    Linf,
    ProjectedGradient,
    Square,
    Target,
)
from robusttrain.evaluation import Engine, Records, Rows, Scenario
from robusttrain.evaluation.audit import Audit
from robusttrain.evaluation.audit.changes import (
    averaged_draws,
    more_draws,
    more_steps,
    rebuilt,
    short,
    single_step,
    with_epsilon,
)
from robusttrain.evaluation.audit.finding import Finding, beaten, significant, tail
from robusttrain.evaluation.audit.report import verdict
from robusttrain.evaluation.audit.subject import Subject

from .networks import digits, plain


def pgd(**values):
    return ProjectedGradient(**{"steps": 20, "step_size": 0.01, "threat": Linf(0.1), **values})


def test_counts_beyond_luck():
    """P(X >= k) of a binomial with rate 2 %: by hand for small numbers."""
    assert tail(1, 1, 0.02) == pytest.approx(0.02)
    assert tail(2, 2, 0.5) == pytest.approx(0.25)
    assert tail(0, 7, 0.3) == pytest.approx(1)
    assert [significant(k, 32) for k in range(5)] == [False, False, False, True, True]
    assert [significant(k, 8) for k in range(4)] == [False, False, True, True]
    assert not significant(2.9, 32)


def test_luck_on_random_models_is_judged_by_spread():
    ours = torch.full((20,), 0.6, dtype=torch.float64)
    steady = beaten(ours, ours - 0.1, 32, random=True)
    assert steady.images == pytest.approx(2)
    assert steady.more
    # The same sum from noise about zero, a few large differences either way.
    noisy = ours - torch.tensor([0.6, -0.4] * 10, dtype=torch.float64)
    assert beaten(ours, noisy, 32, random=True).images == pytest.approx(2)
    assert not beaten(ours, noisy, 32, random=True).more
    assert not beaten(ours, ours, 32, random=True).more


def test_another_radius():
    wide = with_epsilon(pgd(), 0.5)
    assert (wide.threat.epsilon, wide.step_size) == (0.5, pytest.approx(0.05))
    assert with_epsilon(pgd(), 0.0).step_size == 0.01
    assert with_epsilon(APGD(threat=L2(1.0)), 3.0).threat == L2(3.0)


def test_more_steps_are_finer_but_never_longer():
    assert more_steps(pgd()) == pgd(steps=40, step_size=2.5 * 0.1 / 40)
    assert more_steps(pgd(step_size=1e-6)) == pgd(steps=40, step_size=1e-6)
    assert more_steps(pgd(steps=1, step_size=0.1)).steps == 10
    assert more_steps(APGD(steps=30)).steps == 60
    assert more_steps(Square(queries=100)).queries == 200


def test_draws():
    assert averaged_draws(pgd()) == 1
    assert averaged_draws(pgd(gradient=Average(draws=7))) == 7
    assert averaged_draws(pgd(gradient=AverageLogits(draws=6))) == 6
    assert averaged_draws(GenAttack(votes=5)) == 5
    assert more_draws(pgd(), 10).gradient == Average(draws=10, inner=Backprop())
    assert more_draws(pgd(gradient=Average(draws=8)), 10).gradient.draws == 16
    assert more_draws(GenAttack(votes=3), 10).votes == 10


def test_short_and_single_step():
    assert short(pgd()).steps == 3
    assert short(pgd(steps=2)).steps == 2
    assert short(Square()).queries == 60
    one = single_step(pgd(gradient=Average(draws=3)))
    assert (one.steps, one.alpha, one.random_start, one.gradient) == (
        1,
        0.1,
        False,
        Average(draws=3),
    )


def test_changes_reach_attacks_inside_wrappers():
    from dataclasses import dataclass

    from robusttrain.attacks import Attack, Cost

    @dataclass(frozen=True)
    class Both(Attack):
        attacks: tuple = ()
        threat: Linf = Linf(0.1)  # noqa: RUF009

        def cost(self):
            return Cost(0, 0)

        def run(self, source, images, labels, rng):
            return images

    both = Both((pgd(), APGD(steps=4, threat=Linf(0.1))))
    wide = with_epsilon(both, 0.2)
    assert [wide.threat.epsilon, *(each.threat.epsilon for each in wide.attacks)] == [0.2] * 3
    assert [each.steps for each in more_steps(both).attacks] == [40, 8]
    assert averaged_draws(Both((pgd(), pgd(gradient=Average(draws=4))))) == 4
    assert rebuilt(both, lambda part: part) == both


def test_verdicts():
    def found(check, severity):
        return Finding(check, severity, "something")

    assert verdict([]) == verdict([found("a", "note"), found("b", "not run")]) == "sound"
    assert verdict([found("a", "weak"), found("b", "note"), found("c", "weak")]) == "weak: a, c"
    assert verdict([found("a", "weak"), found("b", "masked")]) == "masked: b, a"


@pytest.mark.parametrize(("survivors", "strongest"), [(True, "late"), (False, "blind")])
def test_the_strongest_attack_where_images_are_handed_on(survivors, strongest):
    """Of 20 images a blind attack takes 12; of the 8 that are left one white box takes none and
    another one 4.
    """
    scenarios = {
        "blind": Scenario(Square(threat=Linf(0.1)), Target()),
        "early": Scenario(pgd(), Target()),
        "late": Scenario(pgd(), Target()),
    }
    model = DefendedClassifier(None, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)))
    engine = Engine(model, scenarios, survivors=survivors)
    right = {
        "blind": [False] * 12 + [True] * 8,
        "early": [True] * 20,
        "late": [True] * 12 + [False] * 4 + [True] * 4,
    }
    given = {
        "blind": [True] * 20,
        "early": [False] * 12 + [True] * 8,
        "late": [False] * 12 + [True] * 8,
    }
    nothing = torch.zeros(20)

    def rows(right, given):
        verdicts, attacked = torch.tensor(right)[:, None], torch.tensor(given)
        index = torch.arange(20)
        return Rows(index, index * 0, verdicts, verdicts, attacked, nothing, nothing, nothing)

    records = Records({name: rows(right[name], given[name]) for name in scenarios})
    records.rows["clean"] = rows([True] * 20, [False] * 20)
    subject = Subject(
        engine,
        torch.rand(20, 1, 2, 2),
        torch.zeros(20, dtype=torch.int64),
        torch.arange(20),
        records,
    )
    assert subject.main == strongest


class Plain(Attack):
    """An attack of a user's, that declares nothing but what it must."""

    threat = Linf(0.1)

    def run(self, source, images, labels, rng):
        return self.threat.random_start(images, rng)

    def cost(self):
        return Cost(0, 0)


def test_what_cannot_be_done_with_an_attack_is_not_run_and_never_passed():
    engine = Engine(plain(), {"plain": Scenario(Plain(), Target())})
    data = digits()
    batch = data.test[:32], data.test_labels[:32], torch.arange(32)
    audit = Audit(engine, 32, 16)
    audit.before(*batch)
    records, _ = engine.run(*batch)
    audit.after(Records.merged([records]))
    not_run = {found.check for found in audit.findings if found.severity == "not run"}
    assert {"twice the steps", "epsilon zero", "epsilon half", "monotone"} <= not_run
