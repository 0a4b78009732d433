"""The checks of another objective and of another start, and what does not depend on scale."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    APGD,
    DLR,
    FAB,
    L2,
    Attack,
    Average,
    Backprop,
    CarliniWagner,
    Cost,
    CrossEntropy,
    IdentityBackward,
    Linf,
    Margin,
    NearestBoundary,
    Restarts,
    Several,
    Source,
    Square,
    Target,
    TargetedDLR,
    TargetedMargin,
)
from robusttrain.config.evaluation import read_plan
from robusttrain.core.rng import Rng
from robusttrain.evaluation import Engine, Records, Scenario
from robusttrain.evaluation.audit import Audit, objectives
from robusttrain.evaluation.audit.finding import NotRun
from robusttrain.evaluation.audit.gradients import cosines, finite_differences
from robusttrain.evaluation.audit.objectives import with_other_objectives, with_other_starts
from robusttrain.evaluation.audit.planted import planted_weakness
from robusttrain.evaluation.audit.strength import (
    silent_success,
    still_rising,
    twice_the_draws,
)
from robusttrain.evaluation.audit.subject import Subject
from robusttrain.evaluation.audit.trace import Trace, watched

from . import networks as n
from . import testtime as t
from .corpus import EPSILON, IMAGES, evaluation, pgd
from .weak_objectives import NEW_WRONG


def subject_of(engine, images=32, part=None):
    """The part of the first ``images`` digits that are right, with the evaluation's records."""
    data = n.digits()
    batch = data.test[:images], data.test_labels[:images], torch.arange(images)
    records = Records.merged([engine.run(*batch)[0]])
    right = records.of("clean").right.bool().nonzero().squeeze(1)
    right = right[part if isinstance(part, slice) else slice(part)]
    return Subject(engine, *(each[right] for each in batch), records=records)


def findings(engine, images=32, sample=None):
    """Of an audit on the first ``images`` digits."""
    data = n.digits()
    batch = data.test[:images], data.test_labels[:images], torch.arange(images)
    audit = Audit(engine, images, sample)
    audit.before(*batch)
    audit.after(Records.merged([engine.run(*batch)[0]]))
    return audit, {each.check: each for each in audit.findings}


def test_an_attack_with_another_objective():
    assert pgd().with_objective(Margin()) == pgd(objective=Margin())
    assert APGD(objective=TargetedDLR(), targets=9).with_objective(DLR()) == APGD(objective=DLR())
    runner_up = TargetedMargin(target="second")
    targeted = APGD(objective=TargetedDLR(), targets=3).with_objective(runner_up)
    assert (targeted.objective, targeted.targets) == (runner_up, 3)
    assert Restarts(pgd()).with_objective(DLR()).members[0].maximises == DLR()
    assert CarliniWagner().with_objective(CrossEntropy()) is None
    assert CarliniWagner().with_objective(runner_up).objective == runner_up
    assert FAB().with_objective(Margin()) is None


def test_which_objectives_stand_in():
    def tried(attack, classes=10):
        return [type(each.maximises) for _, _, each in with_other_objectives(attack, classes)]

    assert tried(pgd()) == [Margin, DLR, TargetedMargin]
    assert tried(pgd(objective=Margin())) == [DLR, TargetedMargin, CrossEntropy]
    assert tried(pgd(), classes=2) == [Margin, TargetedMargin]
    both = Several([pgd(), APGD(objective=DLR(), steps=7), Square()], threat=Linf(EPSILON))
    assert tried(both) == [Margin, TargetedMargin]
    # One run of one member, in the wrapper's threat, and not the whole cascade.
    assert with_other_objectives(both, 10)[0][2] == pgd(objective=Margin())


def test_they_cost_what_they_say():
    """Counted by the source's own counters, on an evaluation that leaves all images standing."""
    for attack in (pgd(), pgd(gradient=Average(draws=3)), APGD(steps=9), pgd(steps=1)):
        versions = [each for _, _, each in with_other_objectives(attack, 10)]
        versions += [each for _, each in with_other_starts(attack, 10)]
        engine = Engine(n.Scaled(n.plain(), 0.0), {"x": Scenario(attack, Target())})
        data, asked = n.digits(), engine.sources["x"]
        wrong = (data.test_labels[:4] * 0).long()
        for version in versions:
            asked.reset()
            version(asked, data.test[:4], wrong)
            spent = (asked.gradients + asked.queries) / 4
            assert 0 < spent <= sum(version.cost())
        once = sum(sum(each.cost()) for each in versions)
        own = sum(attack.cost())
        assert objectives.evaluations(attack, own, decided=True) == once
        assert objectives.evaluations(attack, own, decided=False) == own + 2 * once
    assert objectives.evaluations(Square(), 100, decided=False) == 0


@pytest.mark.parametrize("factor", [1.0, 1e-12, 1e-25, 1e25])
def test_cosines_do_not_depend_on_length(factor):
    first = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]).view(3, 1, 1, 2) * factor
    other = torch.tensor([[4.0, 3.0], [-1.0, 0.0], [1.0, 1.0]]).view(3, 1, 1, 2) * factor
    assert cosines(first, other).tolist() == pytest.approx([0.96, -1.0, 0.0], abs=1e-5)
    assert cosines(first * torch.nan, other).isnan().all()


def course(losses):
    """A subject whose attack had these losses, on one image that stands."""
    return SimpleNamespace(
        need_standing=lambda: torch.tensor([0]),
        scenario=Scenario(pgd(), Target()),
        trace=SimpleNamespace(losses=[torch.tensor([each]).double() for each in losses]),
        main="attack",
    )


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_a_rising_loss_is_named_at_any_scale(factor):
    steps = torch.arange(41) / 40
    for offset in (0.0, -1.0, 3.0):
        rising = still_rising(course(factor * (steps**2 + offset)))
        assert rising.severity == "weak"
        assert rising.value == pytest.approx((36.5**2 - 28.5**2) / (36.5**2 + 5.25), rel=1e-4)
        assert still_rising(course(factor * (steps.sqrt() + offset))) is None
        assert still_rising(course(factor * (offset - steps**2))) is None  # it falls


@pytest.mark.parametrize("keep", ["first", "best"])
def test_of_several_runs_the_course_is_that_of_the_last(keep, linear, images, streams):
    """Steps too short for anything: each run rises to its end, and so does what is judged."""
    model, x = linear(), images()
    once = pgd(steps=6, step_size=1e-4)
    labels = model(x).argmax(1)
    for attack, points in (
        (once, 7),
        (Restarts(once, 3, keep, threat=once.threat), 7),
        (APGD(6, restarts=2, threat=Linf(1e-3)), 8),
        (NearestBoundary(6, threat=Linf(1e-3)), 7),  # it makes a loss for each step
    ):
        trace = Trace(len(x))
        trace.close(watched(attack, trace)(model, x, labels, streams()))
        assert len(trace.losses) == points


def test_what_rounding_explains_is_no_course():
    """Tiny logits: the cross entropy is log 10, and moves in its last places only."""
    with pytest.raises(NotRun, match="no more than its rounding"):
        still_rising(course(2.302585 + 1e-6 * torch.arange(41).double() / 40))
    with pytest.raises(NotRun, match="no more than its rounding"):
        still_rising(course(torch.zeros(41)))


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_a_wrong_derivative_is_named_at_any_scale(factor):
    attack = pgd(steps=1, objective=Margin())
    wrong = subject_of(evaluation(n.Scaled(n.Detached(n.plain()), factor), attack))
    assert finite_differences(wrong).severity == "masked"
    assert finite_differences(subject_of(evaluation(n.Scaled(n.plain(), factor), attack))) is None


def test_a_finding_says_what_fell_with_what_and_a_command_that_can_be_typed():
    found = objectives.another_objective(subject_of(evaluation(t.linear(), pgd(steps=40)), IMAGES))
    assert found.severity == "weak"
    assert "(the margin " in found.measured
    assert found.remedy == "run --attack apgd-margin"
    stuck = subject_of(evaluation(t.Stuck(n.plain()), pgd(random_start=False)))
    found = objectives.another_start(stuck)
    assert found.severity == "weak"
    assert "a random corner " in found.measured
    assert found.remedy == "run --attack apgd-ce --attack.restarts 5"


def test_commands_follow_the_source_and_the_randomness():
    subject = SimpleNamespace(scenario=Scenario(pgd(), IdentityBackward()), random=True)
    for _, _, preset in objectives.OBJECTIVES:
        line = objectives.command(subject, preset)
        plan = read_plan([*line.split(), "--defense", "none", "--model", "mlp"])
        attack = plan.attacks[preset]
        assert "IdentityBackward" in str(attack["source"])
        assert "Average" in str(attack["init_args"]["gradient"])


def test_luck_on_a_random_model_is_no_finding():
    """Votes that are pure chance: any version looks better in some draws, and none is."""

    class Coin(nn.Module):
        takes_rng = random = True

        def forward(self, images, rng):
            # Uniform, whatever the image; another image has other draws.
            shift = 1e3 * images.detach().flatten(1).sum(dim=1, keepdim=True)
            chance = (rng.uniform((10,)) + shift).remainder(1) + 0 * images.sum()
            return chance + 0.5 * nn.functional.one_hot(torch.tensor([0]), 10)

    batch = n.digits().test[:48], torch.zeros(48, dtype=torch.int64), torch.arange(48)
    for seed in range(3):
        scenarios = {"attack": Scenario(pgd(steps=3, gradient=Average(draws=2)), Target())}
        engine = Engine(Coin(), scenarios, seed=seed, draws=10)
        audit = Audit(engine, 48)
        audit.before(*batch)
        audit.after(Records.merged([engine.run(*batch)[0]]))
        found = {each.check: each.severity for each in audit.findings}
        assert found["another objective"] == found["another start"] == "note"


def test_a_few_images_are_decided_by_the_rest_of_the_candidates():
    """Of the first 32 images one falls, which luck allows; of all 61 eight do."""
    case = next(case for case in NEW_WRONG if case.name.startswith("adversarial training"))
    subject = subject_of(case.engine(), IMAGES, 32)
    alone = objectives.another_objective(subject)
    assert (alone.severity, alone.value) == ("note", 1 / 32)
    subject.rest = subject_of(case.engine(), IMAGES, slice(32, None))
    assert subject.rest.size == 29
    whole = objectives.another_objective(subject)
    assert (whole.severity, whole.value) == ("weak", 8 / 61)


@dataclasses.dataclass(frozen=True)
class Hidden(Attack):
    """An attack of a user's that climbs the cross entropy, and says nothing of its parts."""

    threat: Linf = dataclasses.field(default_factory=lambda: Linf(EPSILON))

    def cost(self):
        return Cost(40, 0)

    def run(self, source, images, labels, rng):
        return pgd(steps=40).run(source, images, labels, rng)


def test_an_attack_that_says_nothing_meets_the_audits_own_ascent():
    subject = subject_of(evaluation(t.linear(), Hidden()), IMAGES)
    assert objectives.another_objective(subject).severity == "weak"
    for check in (still_rising, silent_success):
        with pytest.raises(NotRun, match="no estimator that can be watched"):
            check(subject)


def test_a_planted_weakness_is_for_all_members_of_a_cascade():
    """The first one finds nothing, and the second needs three classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    lazy, able = pgd(steps=1, step_size=1e-9, random_start=False), APGD(10, objective=DLR())
    engine = evaluation(model, Several([lazy, able], threat=Linf(EPSILON)))
    batch = x, model(x).argmax(1), torch.arange(16)
    records = Records.merged([engine.run(*batch)[0]])
    assert planted_weakness(Subject(engine, *batch, records=records)) is None


class Drawing(nn.Module):
    """A network that draws its own noise from the streams that it is given."""

    takes_rng = random = True

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 4)

    def forward(self, images, rng):
        return self.last((images + 0.001 * rng.normal(images.shape[1:])).flatten(1))


class Elsewhere(Source):
    """Another network than the one that it is given, though it does not say so."""

    knows = "classifier, defense"

    def __call__(self, target):
        return Drawing()


@pytest.mark.parametrize("source", [None, Elsewhere()])
def test_a_weakness_is_planted_in_a_network_that_takes_streams(source):
    """It was asked without them, and the verdict was incomplete."""
    torch.manual_seed(0)
    model = Drawing()
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    attack = pgd(steps=40, gradient=Average(draws=2))
    engine = evaluation(model, attack, source)
    y = model(x, Rng.for_images(0, torch.arange(16))).argmax(1)
    batch = x, y, torch.arange(16)
    subject = Subject(engine, *batch, records=Records.merged([engine.run(*batch)[0]]))
    if source is None:
        assert planted_weakness(subject) is None
        return
    with pytest.raises(NotRun, match="does not contain the network that it is given"):
        planted_weakness(subject)


def test_what_could_not_run_is_listed_and_what_has_nothing_to_ask_is_not_counted():
    audit, found = findings(
        evaluation(n.plain(), CarliniWagner(steps=20, search_steps=1, threat=L2(0.3))), 16, 8
    )
    assert found["loss still rising"].severity == "not run"
    assert "twice the draws" not in audit.tried  # the model draws nothing
    assert "white box" not in audit.tried  # there is one attack
    assert {*found} <= {*audit.tried}


def test_too_few_images_leave_every_later_check_not_run():
    audit, found = findings(evaluation(n.plain(), pgd(steps=1)), images=3)
    assert found["sample"].severity == "weak"
    assert found["another objective"].severity == found["epsilon 0"].severity == "not run"
    assert audit.verdict == "weak: sample"


@pytest.mark.parametrize(("gradient", "named"), [(Backprop(), True), (Average(draws=5), False)])
def test_on_a_random_model_an_attack_that_never_averaged_is_told_what_does(gradient, named):
    """Even where the sample is too small to show it."""
    random = evaluation(n.noisy(), pgd(steps=5, gradient=gradient), defense=n.Noise(0.1))
    found = twice_the_draws(subject_of(random))
    assert found.severity == "note", found
    assert ("--attack eot" in found.remedy) == named
