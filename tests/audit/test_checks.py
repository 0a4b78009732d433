"""Parts of the audit on models with known answers."""

from types import SimpleNamespace

import pytest
import torch

from robusttrain import DefendedClassifier
from robusttrain.attacks import (
    APGD,
    DDN,
    FAB,
    FMN,
    L2,
    Attack,
    Average,
    AverageLogits,
    Backprop,
    CarliniWagner,
    Cost,
    DeepFool,
    GenAttack,
    HopSkipJump,
    Linf,
    MeanStart,
    MinimalNorm,
    NearestBoundary,
    Optimization,
    ProjectedGradient,
    Restarts,
    Several,
    Smooth,
    Square,
    Target,
)
from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Digits
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine, Records, Rows, Scenario
from robusttrain.evaluation.audit import Audit, report
from robusttrain.evaluation.audit.before import repeated_passes, zero_gradients
from robusttrain.evaluation.audit.changes import single_step
from robusttrain.evaluation.audit.finding import Finding, NotRun, beaten, significant, tail
from robusttrain.evaluation.audit.report import verdict
from robusttrain.evaluation.audit.subject import Subject
from robusttrain.evaluation.auditing import begin_audit

from .corpus import IMAGES, evaluation
from .networks import digits, plain


def pgd(**values):
    return ProjectedGradient(**{"steps": 20, "step_size": 0.01, "threat": Linf(0.1), **values})


def test_counts_beyond_luck():
    """P(X >= k) of a binomial with rate 2 %: by hand for small numbers."""
    assert tail(1, 1, 0.02) == pytest.approx(0.02)
    assert tail(2, 2, 0.5) == pytest.approx(0.25)
    assert tail(0, 7, 0.3) == pytest.approx(1)
    # Whole numbers of this size do not fit a float: 10,000 over 250 has 505 digits.
    assert tail(250, 10_000, 0.02) == pytest.approx(0.00031, abs=0.00002)
    assert not significant(210, 10_000)
    assert significant(250, 10_000)
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
    wide = pgd().at_radius(0.5)
    assert (wide.threat.epsilon, wide.step_size) == (0.5, pytest.approx(0.05))
    assert pgd().at_radius(0.0).step_size == 0.01
    assert APGD(threat=L2(1.0)).at_radius(3.0).threat == L2(3.0)
    start = MeanStart(step_size=0.01, threat=Linf(0.1)).at_radius(0.2)
    assert (start.threat, start.step_size) == (Linf(0.2), pytest.approx(0.02))


def test_more_steps_are_finer_but_never_longer():
    assert pgd().scaled(2) == pgd(steps=40, step_size=2.5 * 0.1 / 40)
    assert pgd(step_size=1e-6).scaled(2) == pgd(steps=40, step_size=1e-6)
    assert pgd(steps=1, step_size=0.1).scaled(2).steps == 10
    assert APGD(steps=30).scaled(2).steps == 60
    assert Square(queries=100).scaled(2).queries == 200
    assert MeanStart(draws=50, step_size=0.01).scaled(2).steps == 100


@pytest.mark.parametrize(
    "attack",
    [
        pgd(),
        APGD(),
        FAB(),
        DDN(),
        DeepFool(),
        FMN(),
        NearestBoundary(),
        CarliniWagner(),
        GenAttack(),
        HopSkipJump(),
        Optimization(),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_every_attack_with_steps_can_be_scaled(attack):
    assert attack.scaled(2).steps == 2 * attack.steps
    assert attack.scaled(1).steps == attack.steps
    assert attack.scaled(0).steps == 3


def test_draws():
    assert pgd().draws_seen == 1
    assert pgd(gradient=Average(draws=7)).draws_seen == 7
    assert pgd(gradient=Average(draws=7, inner=Smooth(samples=3))).draws_seen == 21
    assert pgd(gradient=Smooth(samples=3)).draws_seen == 3
    assert pgd(gradient=AverageLogits(draws=6)).draws_seen == 6
    assert GenAttack(votes=5).draws_seen == 5
    assert pgd().with_draws(10).gradient == Average(draws=10, inner=Backprop())
    assert pgd(gradient=Average(draws=8)).with_draws(10).gradient.draws == 16
    assert GenAttack(votes=3).with_draws(10).votes == 10
    assert FAB(gradient=Average(draws=8)).with_draws(10).gradient.draws == 16
    assert DeepFool(votes=8).with_draws(10).votes == 16
    # Its queries are those of all votes: with as many, twice the votes would be half the search.
    square = Square(queries=602, votes=10).with_draws(30)
    assert (square.votes, square.queries) == (30, 1802)


def test_least_versions_and_single_step():
    assert pgd(steps=2).scaled(0).steps == 2
    assert Square().scaled(0).queries == 60
    assert MeanStart(step_size=0.01).scaled(0).draws == 10
    one = single_step(pgd(gradient=Average(draws=3)))
    assert (one.steps, one.alpha, one.random_start, one.gradient) == (
        1,
        0.1,
        False,
        Average(draws=3),
    )


def test_other_versions_reach_attacks_inside_wrappers():
    both = Several([pgd(), APGD(steps=4)], votes=20, threat=Linf(0.1))
    wide = both.at_radius(0.2)
    assert [wide.threat.epsilon, *(each.threat.epsilon for each in wide.members)] == [0.2] * 3
    assert wide.members[0].step_size == pytest.approx(0.02)
    assert [each.steps for each in both.scaled(2).members] == [40, 8]
    assert Several([pgd(gradient=Average(draws=40))], votes=20).draws_seen == 40
    drawn = both.with_draws(30)
    assert drawn.votes == 40
    assert [each.gradient.draws for each in drawn.members] == [30, 30]
    seen = both.with_gradient(lambda gradient: Smooth(inner=gradient))
    assert [each.gradient for each in seen.members] == [Smooth()] * 2
    assert Restarts(pgd()).scaled(2).attack.steps == 40
    assert MinimalNorm(APGD()).scaled(2).attack.steps == 200


def test_an_attack_that_says_nothing_has_no_other_versions():
    class Silent(Attack):
        threat = Linf(0.1)

        def cost(self):
            return Cost(3, 0)

        def run(self, source, images, labels, rng):
            return images

    silent = Silent()
    assert silent.scaled(2) is None
    assert silent.with_draws(10) is None
    assert silent.with_gradient(lambda gradient: gradient) is None
    assert silent.draws_seen == 1
    with pytest.raises(OptionError, match="Silent, which has one of its own"):
        silent.at_radius(0.2)
    with pytest.raises(OptionError, match="Silent is no wrapper"):
        silent.with_members([pgd()])


def test_verdicts():
    def found(check, severity):
        return Finding(check, severity, "something")

    assert verdict([]) == verdict([found("a", "note"), found("b", "not run")]) == "sound"
    assert verdict([found("a", "weak"), found("b", "note"), found("c", "weak")]) == "weak: a, c"
    assert verdict([found("a", "weak"), found("b", "masked")]) == "masked: b, a"


def test_an_audit_of_which_no_check_could_be_made_is_not_sound(monkeypatch):
    """Enough images, and a target that repeats itself, say nothing of the attacks."""

    def impossible(subject):
        raise NotRun("no way to")

    def passed(subject):
        return None

    def failing(subject):
        raise RuntimeError("out of memory")

    def unfit(subject):
        raise UserError("does not apply")

    data = digits()
    batch = data.test[:IMAGES], data.test_labels[:IMAGES], torch.arange(IMAGES)
    first = [each for each in report.CHECKS if each[0] == "before"]
    assert [name for name, _ in first] == ["before"] * 4
    for checks, expected in (
        ([impossible], report.NO_CHECK),
        ([passed], "sound"),
        ([impossible, passed], "sound"),
        ([unfit, passed], "sound"),
        # What was not looked at may be what hides.
        ([failing, passed], "incomplete: failing"),
    ):
        after = [("after", each) for each in checks]
        monkeypatch.setattr(report, "CHECKS", (*first, *after))
        engine = evaluation(plain(), pgd(steps=1))
        audit = Audit(engine, IMAGES)
        audit.before(*batch)
        audit.after(Records.merged([engine.run(*batch)[0]]))
        assert audit.verdict == expected
        monkeypatch.undo()


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


def test_of_attacks_that_leave_as_many_the_dearest_is_audited_whatever_their_order():
    cheap, dear = Scenario(pgd(steps=5), Target()), Scenario(pgd(steps=20), Target())
    data = digits()
    batch = data.test[:IMAGES], data.test_labels[:IMAGES], torch.arange(IMAGES)
    for scenarios in ({"cheap": cheap, "dear": dear}, {"dear": dear, "cheap": cheap}):
        engine = Engine(DefendedClassifier.of(plain()), scenarios)
        records = Records.merged([engine.run(*batch)[0]])
        records.rows["cheap"] = records.rows["dear"]
        assert Subject(engine, *batch, records).main == "dear"


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
    assert {"twice the steps", "epsilon 0", "epsilon 0.5", "monotone in epsilon"} <= not_run


class Undeclared(Defense):
    """Adds noise from the streams that it is given, and does not say that it is random."""

    def transform(self, images, rng):
        return images + 0.1 * rng.normal(images.shape[1:])


def test_noise_from_the_given_streams_is_no_generator_of_its_own():
    """Every run has the same figures, and all that is missing is a word."""
    everyone = torch.arange(16)
    engine = Engine(DefendedClassifier(Undeclared(), plain()), {"pgd": Scenario(pgd(), Target())})
    found = repeated_passes(
        Subject(engine, digits().test[:16], digits().test_labels[:16], everyone, None)
    )
    assert found is not None
    assert found.severity == "note"
    assert "it draws from the rng that it is given" in found.measured
    assert found.remedy == "say random = True"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (0, None),
        (2, "pgd: the gradient is NaN or infinite at 25.0% of the pixels, which attacks leave as"),
        (8, "pgd: the gradient is exactly zero or NaN on 16 of 16 images, at the image and at a"),
    ],
)
def test_pixels_without_a_gradient_are_told(rows, what):
    """As a root of 0 has none, wherever torch's graph does not show it."""

    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[:, :, :rows] = torch.nan
            return gradient

    class Rooted(torch.nn.Module):
        def forward(self, images):
            return plain()(Root.apply(images))

    images, labels = digits().test[:16], digits().test_labels[:16]
    side = images.shape[2]
    assert side % 8 == 0
    rows = rows * side // 8
    engine = Engine(DefendedClassifier(None, Rooted()), {"pgd": Scenario(pgd(), Target())})
    found = zero_gradients(Subject(engine, images, labels, torch.arange(16), None))
    assert (found is None) == (what is None)
    if found is not None:
        assert found.severity == "masked"
        assert found.measured.startswith(what)


def test_the_sample_is_spread_over_all_images():
    """In a folder images lie class by class: the first of the sorted would be those of few."""
    data = Digits()
    data.setup("test")
    given = []

    class Candidates:
        candidates = 60

        def before(self, images, labels, indices):
            given.append(indices)
            return []

    evaluation = SimpleNamespace(to=lambda device: None)
    begin_audit(Candidates(), evaluation, data, 0, torch.device("cpu"), print)
    (indices,) = given
    assert len(set(indices.tolist())) == 60
    first = indices[:20].double()
    assert first.min() < 60
    assert first.max() > 237  # of 297
