"""Three threats of randomness, and a defense beside its own classifier: figures that are known
beforehand.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from robusttrain.attacks import (
    Average,
    ClassifierOnly,
    Ensemble,
    FixedRandomness,
    IdentityBackward,
    KnownDraw,
    Linf,
    OtherModel,
    ProjectedGradient,
    Smooth,
    Target,
)
from robusttrain.config.attacks import attack_nodes
from robusttrain.core.errors import OptionError
from robusttrain.core.rng import Rng
from robusttrain.data import Digits
from robusttrain.data.given import GivenImages
from robusttrain.defenses import Defense
from robusttrain.evaluation import Engine, Scenario
from robusttrain.evaluation.beside import (
    added,
    bare_classifier,
    known_draw,
    sentence,
    too_weak,
    transferred,
    with_transferred,
)
from robusttrain.evaluation.class_doubts import doubts_of
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.randomness import all_right, randomness, under_tries
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.results import results
from robusttrain.evaluation.running import Subject, besides_of, settings_of
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.evaluating import for_the_bare


class Shift(Defense):
    """Adds the same brightness, drawn anew for each image, to all of its pixels."""

    random = True

    def __init__(self, size=0.1):
        super().__init__()
        self.size = size

    def transform(self, images, rng):
        return images + rng.uniform((1, 1, 1), -self.size, self.size)


class Bright(nn.Module):
    """Class 1 for an image whose mean is above one half."""

    def forward(self, images):
        light = images.mean((1, 2, 3)) - 0.5
        return torch.stack([-light, light], 1)


def pgd(source=None, epsilon=0.05, gradient=None, steps=4):
    own = {} if gradient is None else {"gradient": gradient}
    attack = ProjectedGradient(steps=steps, step_size=epsilon, threat=Linf(epsilon), **own)
    return Scenario(attack, source or Target())


def flat(values):
    """Images of one brightness each, and their class."""
    light = torch.tensor(values)
    return light[:, None, None, None].expand(-1, 1, 4, 4).clone(), (light > 0.5).long()


NODE = {"class_path": "torch.nn.Identity"}
LIGHT = [0.4, 0.42, 0.46, 0.48, 0.52, 0.56, 0.58, 0.6, 0.9, 0.1] * 6


@pytest.fixture
def task():
    images, labels = flat(LIGHT)
    return DefendedClassifier(Shift(), Bright()), images, labels, torch.arange(len(images))


def test_the_share_of_tries_that_all_hold_is_that_of_all_subsets():
    score = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    assert all_right(score, 1).tolist() == [1, 0.75, 0.5, 0.25]
    assert all_right(score, 2).tolist() == pytest.approx([1, 3 / 6, 1 / 6, 0])
    assert all_right(score, 4).tolist() == [1, 0, 0, 0]
    # Without bias: over many draws of a model that is right in 70 %, 0.7 ** 3.
    many = torch.rand(40_000, 10, generator=torch.Generator().manual_seed(0)) < 0.7
    assert all_right(many, 3).mean().item() == pytest.approx(0.7**3, abs=0.005)


def test_an_attacker_who_knows_the_draw_is_judged_by_that_draw(task):
    target, images, labels, index = task
    engine = Engine(target, {"pgd": pgd(gradient=Average(draws=3))}, seed=3)
    whole, _ = engine.run(images, labels, index)
    known = known_draw(engine)
    records, _ = known.run(engine, images, labels, index)
    # Clean: the first of the draws that score, the same for both.
    assert records.of("clean").score.shape == (len(images), 1)
    assert torch.equal(records.of("clean").score[:, 0], whole.of("clean").score[:, 0])
    # Under attack: shift and perturbation add up, so an image stands exactly if its own shift plus
    # the radius does not cross the threshold.
    rng = Rng.for_images(3, index).fold("score").fold(0)
    shift = Shift()(torch.zeros_like(images), rng)[:, 0, 0, 0]
    light = torch.tensor(LIGHT)
    side = torch.where(light > 0.5, 1.0, -1.0)
    stands = (light + shift - 0.5) * side > 0.05
    assert torch.equal(records.worst.bool(), stands)
    assert 0 < stands.sum() < len(images)
    # One draw is all that differs: the average of three takes one.
    assert records.of("pgd").gradients.max() == 4


def test_the_three_threats_of_one_evaluation(task):
    target, images, labels, index = task
    engine = Engine(target, {"pgd": pgd()}, seed=0)
    whole, seconds = engine.run(images, labels, index)
    known, _ = known_draw(engine).run(engine, images, labels, index)
    rows = randomness(results(whole, engine, seconds), whole, 10, known)
    unknown, tries, informed = (
        rows[name]["worst_case"]["robust_accuracy"] for name in ("unknown", "tries", "known")
    )
    assert tries < min(informed, unknown) - 0.1
    # Which way is down does not hang on this draw, so to know it gains nothing but its luck.
    assert informed == pytest.approx(unknown, abs=0.1)
    assert rows["tries"]["tries"] == 10
    once, worst = under_tries(whole, 1)
    assert once.mean().item() == pytest.approx(rows["unknown"]["clean"]["accuracy"], abs=1e-6)
    assert worst.mean().item() == pytest.approx(unknown, abs=1e-6)


def test_the_draw_goes_along_whatever_an_attack_does_with_its_streams(images):
    class Drawn(nn.Module):
        takes_rng = random = True

        def forward(self, pictures, rng=None):
            return rng.normal((3,))

    asked = KnownDraw(Drawn())
    rng = Rng.for_images(0, torch.arange(6))
    scoring = rng.fold("score").fold(0)
    streams = rng.disclosing(scoring).fold("attack").fold(7)
    expected = Drawn()(None, Rng(scoring.keys))
    pictures = images(6)
    assert torch.equal(asked(pictures, streams), expected)
    keep = torch.tensor([4, 1])
    assert torch.equal(asked(pictures[keep], streams[keep]), expected[keep])
    assert torch.equal(asked(pictures.repeat(2, 1, 1, 1), streams.tile(2)), expected.repeat(2, 1))
    with pytest.raises(ValueError, match="which ones score"):
        asked(pictures, rng)


@pytest.mark.parametrize(
    "source",
    [
        FixedRandomness(inner=Target()),
        Ensemble([Target()]),
        Ensemble([IdentityBackward(), Ensemble([Target(), FixedRandomness()], [0.2, 0.8])]),
    ],
)
def test_whoever_knows_the_draw_has_it_in_every_model_inside(source, curved, images):
    """Members of an ensemble have streams of their own, and a frozen draw is another one."""
    target = DefendedClassifier(Shift(size=0.5), curved())
    x, index = images(6), torch.arange(6)
    engine = Engine(target, {"one": Scenario(ProjectedGradient(2), source)}, draws=2)
    engine.ask(x, index)
    other = engine.disclosing()
    rng = Rng.for_images(0, index)
    scoring = rng.fold("score").fold(0)
    streams = rng.disclosing(scoring).fold("attack").fold(3)
    answers = other.sources["one"](x, streams)
    torch.testing.assert_close(answers, target(x, Rng(scoring.keys)), rtol=0, atol=1e-5)
    assert not other.sources["one"].random


def test_averages_over_the_models_draws_alone_take_one():
    once = pgd(gradient=Average(draws=20)).attack.for_one_draw()
    assert once.cost().gradients == 4
    smoothed = pgd(gradient=Average(draws=20, inner=Smooth(samples=1))).attack
    assert smoothed.for_one_draw() == smoothed  # the noise differs, too
    assert pgd().attack.for_one_draw() == pgd().attack


def test_a_defense_that_does_nothing_adds_nothing(task):
    _, images, labels, index = task
    target = DefendedClassifier(Shift(size=0.0), Bright())
    engine = Engine(target, {"pgd": pgd()}, draws=4)
    whole, _ = engine.run(images, labels, index)
    beside = bare_classifier(engine, {"pgd": torch.float32})
    bare, seconds = beside.run(engine, images, labels, index)
    assert torch.equal(bare.worst, whole.worst)
    figures = added(bare, whole, random=True)
    assert figures["worst_case"]["difference"] == 0
    content = results(whole, engine, {}) | {
        "bare_classifier": beside.content(bare, seconds) | {"added": figures}
    }
    assert "adds 0.0 points" in sentence(content)
    assert sentence(results(whole, engine, {})) is None


def test_a_defense_that_helps_adds_what_it_adds(task):
    class Contrast(Defense):
        """Takes the image's mean away from the threshold: twice as far."""

        def transform(self, images, rng):
            return 2 * images - 0.5 * torch.ones_like(images)

    class Quantised(nn.Module):
        """Bright, with images within 0.03 of the threshold wrong."""

        def forward(self, images):
            light = images.mean((1, 2, 3)) - 0.5
            light = torch.where(light.abs() < 0.03, -light, light)
            return torch.stack([-light, light], 1)

    _, images, labels, index = task
    engine = Engine(DefendedClassifier(Contrast(), Quantised()), {"pgd": pgd(epsilon=0.005)})
    whole, _ = engine.run(images, labels, index)
    beside = bare_classifier(engine, {"pgd": torch.float32})
    bare, _ = beside.run(engine, images, labels, index)
    row = added(bare, whole, random=False)["clean"]
    # 0.48 and 0.52 are wrong without the defense and right with it: 12 of 60.
    assert (row["won"], row["lost"]) == (12, 0)
    assert row["difference"] == pytest.approx(0.2)
    assert row["ci95"][0] < 0.2 < row["ci95"][1]
    assert "McNemar" in row["test"]


class Certain(Defense):
    """Takes an image's brightness far to its own side of one half, where `Saturated` is flat."""

    differentiable = False

    def transform(self, images, rng):
        side = (images.mean((1, 2, 3), keepdim=True) > 0.5).float()
        return torch.zeros_like(images) + 0.1 + 0.8 * side


class Saturated(nn.Module):
    """Bright, flat from 0.2 off the threshold on."""

    def forward(self, images):
        light = (images.mean((1, 2, 3)) - 0.5).clamp(-0.2, 0.2)
        return torch.stack([-light, light], 1)


def test_what_breaks_the_classifier_alone_is_tried_behind_the_defense(task):
    """A defense that makes the classifier certain has no gradient behind it, and adds nothing."""
    _, images, labels, index = task
    target = DefendedClassifier(Certain(), Saturated())
    engine = Engine(target, {"around": pgd(IdentityBackward())})
    whole, _ = engine.run(images, labels, index)
    assert whole.worst.mean() == 1  # nothing to follow
    beside = bare_classifier(engine, {"around": torch.float32})
    before = beside.evaluations
    bare, seconds = beside.run(engine, images, labels, index)
    assert before == 4 + 2 + 1  # steps, verdicts without the defense, one behind it
    near = (torch.tensor(LIGHT) - 0.5).abs() < 0.05
    assert torch.equal(bare.worst.bool(), ~near)
    handed = transferred(engine, images, labels, index, whole, beside.compared(bare))
    assert torch.equal(handed.of("transferred").attacked, near)
    assert torch.equal(handed.of("transferred").right.bool(), ~near)
    found = with_transferred(handed, whole, bare, random=False)
    assert (found["images"], found["worst_case"]["robust_accuracy"]) == (18, 0.7)
    assert (found["added"]["difference"], found["added"]["lost"], found["added"]["won"]) == (
        0,
        0,
        0,
    )
    own = {"added": added(bare, whole, random=False), "transferred": found}
    content = results(whole, engine, {}) | {"bare_classifier": beside.content(bare, seconds) | own}
    assert content["worst_case"]["robust_accuracy"] == 1
    headline = sentence(content)
    assert "The defense adds 0.0 points" in headline
    assert "70.0 % (57.5 - 80.1) with it and with what broke the classifier alone" in headline
    said = too_weak(content)
    assert "leaves 70.0 % (57.5 - 80.1) behind the defense, which then adds 0.0 points" in said
    assert said.endswith("; add --attack wt-apgd --attack wt-apgd-t")
    round_ball = content | {"threat": {"norm": "l2", "epsilon": 0.5}}
    assert "ClassifierOnly) in the same threat" in too_weak(round_ball)
    assert f"{said[0].upper()}{said[1:]}." in doubts_of(content)

    strong = Engine(target, {"around": pgd(IdentityBackward()), "wt": pgd(ClassifierOnly())})
    whole, _ = strong.run(images, labels, index)
    assert torch.equal(whole.worst.bool(), ~near)
    handed = transferred(strong, images, labels, index, whole, bare)
    assert not handed.of("transferred").attacked.any()  # they fell already
    # An attack may be called as the table of what is handed over.
    namesake = Records({**whole.under(["around"]).rows, "transferred": whole.of("wt")})
    found = with_transferred(handed, namesake, bare, random=False)
    assert found == with_transferred(handed, whole, bare, random=False)
    assert found["worst_case"]["robust_accuracy"] == 0.7
    own |= {"transferred": found}
    content = results(whole, strong, {}) | {"bare_classifier": beside.content(bare, seconds) | own}
    assert too_weak(content) is None


def test_the_classifier_alone_faces_the_same_attacks_at_the_same_budget(task):
    target, images, labels, index = task
    other = Bright()
    engine = Engine(
        target,
        {
            "through": pgd(),
            "around": pgd(IdentityBackward()),
            "without": pgd(ClassifierOnly()),
            "averaged": pgd(gradient=Average(draws=5)),
            "transferred": pgd(OtherModel(other)),
        },
    )
    beside = bare_classifier(engine, dict.fromkeys(engine.scenarios, torch.float32))
    chosen = beside.engine.scenarios
    # Four are one and the same without a defense.
    assert [*chosen] == ["through", "transferred"]
    assert set(beside.left_out) == {"around", "without", "averaged"}
    assert isinstance(chosen["through"].source, Target)
    assert chosen["transferred"].source == OtherModel(other)
    # 4 + 4 + 4 + 20 + 4 evaluations behind the defense, and as many without.
    assert beside.budget == {"defended": 36, "bare": 36}
    records, _ = beside.run(engine, images, labels, index)
    light = torch.tensor(LIGHT)
    assert torch.equal(records.worst.bool(), (light - 0.5).abs() > 0.05)


def test_what_cannot_run_behind_the_defense_is_not_compared(task):
    """Else the classifier alone would face an attack more, and the defense would gain from that."""
    target, images, labels, index = task
    short = {"steps": 10, "step_size": 0.0001, "random_start": False, "threat": Linf(0.05)}
    weak = Scenario(ProjectedGradient(**short, gradient=Average(draws=5)), Target())
    engine, kinds = Engine(target, {"weak": weak}, draws=4), {"weak": torch.float32}
    plain = bare_classifier(engine, kinds)
    more = bare_classifier(engine, kinds, {"strong": pgd()})
    assert more.budget == plain.budget == {"defended": 50, "bare": 50}
    before, _ = plain.run(engine, images, labels, index)
    after, seconds = more.run(engine, images, labels, index)
    assert torch.equal(more.compared(after).worst, before.worst)
    content = more.content(after, seconds)
    assert content["worst_case"]["robust_accuracy"] == 1
    assert content["beyond"]["attacks"] == ["strong"]
    # 0.46, 0.48 and 0.52 are within 0.05 of the threshold.
    assert content["beyond"]["worst_case"]["robust_accuracy"] == pytest.approx(0.7)
    assert "beyond" not in plain.content(before, seconds)
    whole, _ = engine.run(images, labels, index)
    own = {"added": added(more.compared(after), whole, random=True)}
    said = sentence(results(whole, engine, {}) | {"bare_classifier": content | own})
    assert "100.0 % (94.0 - 100.0) without it" in said
    assert "Without the defense strong can be run as well, and with that 70.0 %" in said


def test_a_draw_that_nobody_can_be_told_is_no_row():
    """A generator of the defense's own: the row would say that the attacker knew a draw."""

    class Own(Defense):
        random = True

        def __init__(self):
            super().__init__()
            self.generator = np.random.default_rng(0)

        def transform(self, images, rng):
            return images + float(self.generator.uniform(-0.1, 0.1))

    node = {"class_path": "torch.nn.Identity"}
    plan = EvaluationPlan(model=node, attacks={}, data=node, known_draw=True)
    images, labels = flat(LIGHT)
    data = GivenImages(images.repeat(1, 3, 1, 1), labels, 2)
    data.setup("test")
    for defense, names in ((Shift(), ["known_draw"]), (Own(), [])):
        engine, lines = Engine(DefendedClassifier(defense, Bright()), {}), []
        subject = Subject(engine.target, "t", data)
        found = besides_of(plan, subject, engine, lines.append)
        assert [each.name for each in found] == names
        assert ("a generator of its own" in "".join(lines)) == (names == [])


def test_a_classifier_that_draws_unasked_is_attacked_over_draws_without_its_defense_too():
    class Unsaid(Bright):
        def forward(self, images):
            return super().forward(images + 0.1 * torch.randn(len(images), 1, 1, 1))

    images, labels = flat(LIGHT)
    data = GivenImages(images.repeat(1, 3, 1, 1), labels, 2)
    data.setup("test")
    plan = EvaluationPlan(model=NODE, attacks={}, data=NODE, bare_classifier=True)
    averaged = {"eot": pgd(gradient=Average(draws=5))}
    for classifier, draws in ((Unsaid(), 5), (Bright(), 1)):
        engine, lines = Engine(DefendedClassifier(Shift(), classifier), averaged), []
        found = besides_of(plan, Subject(engine.target, "t", data), engine, lines.append)
        attack = found[0].engine.scenarios["eot"].attack
        assert (attack.cost().gradients, attack.steps * draws) == (20, 20)


def test_a_classifier_that_takes_no_images_without_its_defense_is_left_out_there():
    """It has to be said before anything is attacked."""

    class Twice(Defense):
        random = True

        def transform(self, images, rng):
            return images.repeat_interleave(2, 2) + rng.uniform((1, 1, 1), -0.1, 0.1)

    class OfOneSize(Bright):
        def forward(self, images):
            return super().forward(images.view(-1, 3, 8, 4))

    images, labels = flat([*LIGHT[:3], 0.9, 0.1])
    data = GivenImages(images.repeat(1, 3, 1, 1), labels, 2)
    data.setup("test")
    target = DefendedClassifier(Twice(), OfOneSize())
    engine, lines = Engine(target, {"eot": pgd()}), []
    attacks = attack_nodes(["eot", "apgd-ce"], epsilon=0.1)
    asked = {"bare_classifier": True, "suites": ["test-time-quick"]}
    plan = EvaluationPlan(model=NODE, attacks=attacks, data=NODE, **asked)
    subject = Subject(target, "t", data, {"apgd-ce": "the target is random"})
    assert for_the_bare(plan, subject) == []
    assert besides_of(plan, subject, engine, lines.append) == []
    (line,) = lines
    assert line.startswith("bare_classifier: the classifier without its defense cannot take images")
    assert line.endswith(": left out")


def test_tries_need_as_many_draws():
    node = {"class_path": "torch.nn.Identity"}
    with pytest.raises(OptionError, match=r"--tries.*20.*--draws 10"):
        EvaluationPlan(model=node, attacks={}, data=node, tries=20)
    assert EvaluationPlan(model=node, attacks={}, data=node, tries=20, draws=20).tries == 20


def test_a_deterministic_model_has_no_randomness_to_know(task):
    _, images, labels, index = task
    engine = Engine(Bright(), {"pgd": pgd()})
    whole, _ = engine.run(images, labels, index)
    content = results(whole, engine, {})
    assert randomness(content, whole, None, None) is None
    assert not math.isnan(content["worst_case"]["robust_accuracy"])


def test_an_unfinished_run_is_of_the_attacks_on_the_bare_classifier_too(task):
    target = task[0]
    nodes = attack_nodes(["eot", "apgd-ce"])
    longer = attack_nodes(["eot", "apgd-ce"], [("apgd-ce.steps", "7")])
    data = {"class_path": "robusttrain.data.Digits"}
    whole, other = (
        EvaluationPlan(model={"class_path": "torch.nn.Identity"}, attacks=each, data=data)
        for each in (nodes, longer)
    )
    unfit, images = {"apgd-ce": "the target is random"}, Digits()
    images.setup("test")
    left_out = Subject(target, "t", images, unfit)
    assert settings_of(whole, left_out) == settings_of(other, left_out)
    beside = Subject(target, "t", images, unfit, {"apgd-ce": pgd()})
    assert settings_of(whole, beside) != settings_of(other, beside)


def test_what_has_no_effect_is_said(task):
    node = {"class_path": "torch.nn.Identity"}
    for option, value in (("certify_draws", 5000), ("certify_alpha", 0.01)):
        with pytest.raises(OptionError, match=rf"--{option} = {value}: needs --certify true"):
            EvaluationPlan(model=node, attacks={}, data=node, **{option: value})
    plan = EvaluationPlan(model=node, attacks={}, data=node, tries=3, known_draw=True)
    lines = []
    engine = Engine(Bright(), {"pgd": pgd()})
    assert besides_of(plan, Subject(engine.target, "t", None), engine, lines.append) == []
    assert [line.partition(":")[0] for line in lines] == ["known_draw", "tries"]
