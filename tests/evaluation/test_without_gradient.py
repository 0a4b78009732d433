"""Models that hand on no gradient are attacked by all that needs none, and the audit says what the
figure lacks.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robusttrain
from robusttrain.attacks import Linf, RandomNoise, Square
from robusttrain.core.errors import UserError
from robusttrain.defenses import Defense
from robusttrain.evaluation.taking import classes_of
from robusttrain.models.defended import DefendedClassifier

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = {"threat": Linf(0.05), "precision": "float32", "progress": False}


class Voting(nn.Module):
    """How many of three shifted copies vote for each class: whole numbers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        shifted = [images.roll(step, 3) for step in (0, 1, -1)]
        votes = [F.one_hot(self.model(each).argmax(1), 3) for each in shifted]
        return torch.stack(votes).sum(0).float()


class Hiding(Defense):
    """Does nothing, and lets no gradient through."""

    random = False
    differentiable = False

    def transform(self, images, rng):
        return images.detach()


class Claiming(Hiding):
    differentiable = True


@pytest.fixture
def given(images, linear):
    """Forty images that the linear model and its votes get right."""
    many, model = images(200), linear()
    labels = model(many).argmax(1)
    right = (Voting(model)(many).argmax(1) == labels).nonzero().squeeze(1)[:40]
    return model, many[right], labels[right]


def evaluated(given, model, **settings):
    return robusttrain.evaluate(model, *given[1:], **{**SETTINGS, "audit": False, **settings})


def test_suites_leave_out_what_would_follow_a_gradient(given):
    results = evaluated(given, Voting(given[0]), suite="test-time-quick")
    assert [*results.attacks] == ["square-quick"]
    reason = results.json["left_out"]["apgd-ce"]
    assert reason == "the model hands on no gradient: a step inside it votes, rounds or is detached"
    assert "apgd-ce" in evaluated(given, given[0], suite="test-time-quick").attacks


def test_named_attacks_and_suites_of_nothing_else_are_refused_before_anything_is_asked(given):
    model = Voting(given[0])
    asked = []
    model.register_forward_hook(lambda module, inputs, logits: asked.append(len(inputs[0])))
    with pytest.raises(UserError, match=r"^attacks pgd: the loss does not depend differentiably"):
        evaluated(given, model, attacks=["square", "pgd"])
    assert sum(asked) < 40 * 20  # Square alone would ask 5,000 times
    with pytest.raises(UserError, match=r"no attack applies.*--suite query"):
        evaluated(given, model, suite="fast-gradient")


def test_a_defense_is_gone_around_and_one_that_claims_a_gradient_is_refused(given):
    around = evaluated(given, given[0], defense=Hiding(), suite="test-time-quick")
    assert {"bpda-i", "bpda-i-margin"} <= {*around.attacks}
    with pytest.raises(UserError, match=r"^defense Claiming: says differentiable = True and hands"):
        evaluated(given, given[0], defense=Claiming(), suite="test-time-quick")


def findings(results):
    return {found["check"]: found for found in results.json["audit"]}


def test_the_audit_says_that_nobody_followed_a_gradient_that_is_there(given):
    """Random points break little that one gradient would not break at once."""
    results = evaluated(
        given, given[0], attacks={"noise": RandomNoise(queries=50, threat=Linf(0.05))}, audit=True
    )
    assert results.worst_case.accuracy > 0.5
    found = findings(results)["white box tried"]
    assert found["severity"] == "weak"
    assert found["value"] > 0.3
    assert "--attack apgd-ce" in found["remedy"]
    white = evaluated(given, given[0], attacks=["fgsm"], audit=True)
    assert "white box tried" not in findings(white)


def test_the_audit_does_not_call_scores_alone_sound_where_they_are_votes(given):
    """Where hardly a query changes a vote, Square is lost, and a search by labels is not."""
    results = evaluated(
        given,
        Voting(given[0]),
        attacks={"square": Square(queries=100, threat=Linf(0.05))},
        audit=True,
    )
    found = findings(results)["white box tried"]
    assert found["severity"] == "weak"
    assert "bpda-i" in found["remedy"]
    assert "white box tried" in results.json["verdict"]


class Unsure(nn.Module):
    """Draws from a generator of its own for images whose margin is small."""

    def __init__(self, model, margin):
        super().__init__()
        self.model, self.margin = model, margin
        self.rng = torch.Generator().manual_seed(0)

    def forward(self, images):
        logits = self.model(images)
        first, second = logits.topk(2).values.unbind(1)
        noise = 5 * torch.randn(logits.shape, generator=self.rng)
        return torch.where((first - second < self.margin)[:, None], logits + noise, logits)


def test_a_generator_that_draws_under_attack_alone_is_named(given):
    model, images, labels = given
    first, second = model(images).topk(2).values.unbind(1)
    sure = (first - second).argsort(descending=True)[:16]
    margin = float((first - second)[sure].min()) - 1e-3
    results = evaluated(
        (model, images[sure], labels[sure]), Unsure(model, margin), attacks="pgd", audit=True
    )
    found = findings(results)["repeated passes"]
    assert found["severity"] == "weak"
    assert "adversarial images" in found["measured"]
    assert "generator of its own" in found["measured"]


class OneMode(nn.Module):
    """As an exported program, which knows no other mode than that of inference."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def train(self, mode=True):
        raise NotImplementedError("not supported yet")

    def eval(self):
        raise NotImplementedError("not supported yet")


class Exported(OneMode):
    def forward(self, images):
        return self.model(images)


def test_a_model_of_one_mode_is_evaluated(given):
    one = evaluated(given, Exported(given[0]), attacks="pgd")
    assert one.worst_case.accuracy == evaluated(given, given[0], attacks="pgd").worst_case.accuracy


class Single(nn.Module):
    def forward(self, images):
        assert len(images) == 1, "one image only"
        return images.flatten(1)[:, :3]


class Halved(Defense):
    random = False
    differentiable = False

    def transform(self, images, rng):
        return images[:, :, ::2, ::2]


def test_what_a_model_does_not_take_is_said_in_its_terms(given):
    model, images, _ = given
    with pytest.raises(UserError, match=r"takes one image and not two \(.*one image only"):
        classes_of(Single(), images)
    behind = DefendedClassifier(Halved(), model)
    with pytest.raises(UserError, match=r"images of \(3, 4, 4\), which its defense Halved makes"):
        classes_of(behind, images)


class Rounding(nn.Module):
    """Two values a pixel: torch's gradient of rounding is zero."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images.round())


class RoundingDefense(Defense):
    """The same as a defense, which claims that its gradient is good for something."""

    random = False
    differentiable = True

    def transform(self, images, rng):
        return images.round()


class Honest(RoundingDefense):
    differentiable = False


def test_a_gradient_that_is_zero_everywhere_is_told_before_it_is_followed(given):
    with pytest.warns(UserWarning, match="pgd, fgsm: the gradient is exactly zero wherever"):
        evaluated(given, Rounding(given[0]), attacks=["pgd", "fgsm", "square-quick"])


def test_a_defense_that_claims_a_gradient_of_zero_is_refused(given):
    with pytest.raises(UserError, match="RoundingDefense: says differentiable = True and hands on"):
        evaluated(given, given[0], defense=RoundingDefense(), suite="worst-case")
    around = evaluated(given, given[0], defense=Honest(), attacks="bpda-i")
    assert around.attacks["bpda-i"].gradients > 0


class Saturated(nn.Module):
    """Gradients of zero at the images alone, where its logits are cut off."""

    def __init__(self, model, images):
        super().__init__()
        self.model, self.at = model, images

    def forward(self, images):
        exact = (images[:, None] == self.at[None]).flatten(2).all(2).any(1)
        return torch.where(exact[:, None], self.model(images).detach(), self.model(images))


@pytest.mark.parametrize("change", ["none", "softmax", "at the images", "a dead image"])
def test_a_gradient_that_is_somewhere_is_not_called_zero(given, change, recwarn):
    model, images, _ = given
    changed = {
        "none": model,
        "softmax": nn.Sequential(model, nn.Softmax(1)),
        "at the images": Saturated(model, images),
        "a dead image": Saturated(model, images[:3]),
    }
    evaluated(given, changed[change], attacks="fgsm")
    assert not [each for each in recwarn if "exactly zero" in str(each.message)]
