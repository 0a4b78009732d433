"""Sources that the attacker trained, on models whose answers are known."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robusttrain import READER, load
from robusttrain.attacks import (
    APGD,
    DDN,
    FMN,
    L2,
    CarliniWagner,
    Checkpoint,
    CrossEntropy,
    Ensemble,
    IdentityBackward,
    Linf,
    Loss,
    Margin,
    NearestBoundary,
    OwnSurrogate,
    ProjectedGradient,
    Queried,
    RandomNoise,
    Reparameterization,
    Source,
    Square,
    Target,
    UnrolledTransform,
    call_model,
)
from robusttrain.attacks.sources.known import KnownDraw
from robusttrain.attacks.sources.surrogates import fused
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.rng import Rng
from robusttrain.defenses import RandomResizePad
from robusttrain.models import FullyConvolutional
from robusttrain.models.defended import DefendedClassifier


class Given(Source):
    """A source that is this model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, target):
        return self.model


def gradient(model, x, rng):
    x = x.clone().requires_grad_()
    labels = torch.arange(len(x)) % 3
    (found,) = torch.autograd.grad(CrossEntropy()(call_model(model, x, rng), labels).sum(), x)
    return found


def test_fused_logits_and_probabilities(curved, linear, images, streams):
    one, two, x = curved(classes=3), linear(), images()
    mean = call_model(Ensemble([Given(one), Given(two)])(None), x, streams())
    torch.testing.assert_close(mean, (one(x) + two(x)) / 2)
    weighted = call_model(Ensemble([Given(one), Given(two)], [0.25, 0.75])(None), x, streams())
    torch.testing.assert_close(weighted, 0.25 * one(x) + 0.75 * two(x))
    fused = call_model(
        Ensemble([Given(one), Given(two)], [0.25, 0.75], "probabilities")(None), x, streams()
    )
    expected = 0.25 * one(x).softmax(1) + 0.75 * two(x).softmax(1)
    torch.testing.assert_close(fused.softmax(1), expected)
    torch.testing.assert_close(fused.exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("factor", [100.0, 1e4, 1e10])
def test_sure_members_leave_their_probabilities_a_direction(factor, linear, images, streams):
    """The other classes' probabilities round to 0: the logarithm had no gradient."""
    model, x = linear(classes=3), images(8)
    model.bias.data -= model.weight.data.sum(1) / 2
    y = model(x).argmax(1)
    sure = linear(classes=3)
    sure.weight.data, sure.bias.data = model.weight.data * factor, model.bias.data * factor
    together = fused([sure, sure], [1.0, 0.0] if factor == 1e4 else None, "probabilities")
    for objective in (CrossEntropy(), Margin()):
        attack = APGD(20, threat=Linf(0.1), objective=objective)
        fell = model(attack(model, x, y, streams(8))).argmax(1) != y
        assert fell.any()
        assert torch.equal(model(attack(together, x, y, streams(8))).argmax(1) != y, fell)


def test_a_class_that_all_members_rule_out_leaves_a_gradient_that_is_a_number(linear, images):
    member, x = linear(classes=3), images().requires_grad_()

    def ruled_out(points):
        logits = member(points)
        return torch.cat([logits[:, :2], torch.full_like(logits[:, 2:], -torch.inf)], dim=1)

    together = fused([Queried(ruled_out), Queried(ruled_out)], None, "probabilities")
    answers = together(x)
    torch.testing.assert_close(answers[:, :2], ruled_out(x)[:, :2].log_softmax(1))
    (found,) = torch.autograd.grad(CrossEntropy()(answers, torch.zeros(4).long()).sum(), x)
    assert found.isfinite().all()
    assert found.any()


def test_members_in_float64_are_fused_in_float64(curved, images, streams):
    members, x = [curved(seed).double() for seed in (1, 2)], images().double()
    mean = sum(call_model(member, x, None) for member in members) / 2
    together = call_model(fused(members, None, "logits"), x, streams())
    torch.testing.assert_close(together, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [CrossEntropy(), Margin()])
def test_fused_losses_are_the_mean_of_the_members_losses(objective, curved, images, streams):
    one, two, x = curved(classes=3), curved(classes=3, seed=1), images()
    labels = torch.arange(4) % 3
    both = Ensemble([Given(one), Given(two)], [0.25, 0.75], "losses")(None)
    expected = 0.25 * objective(one(x), labels) + 0.75 * objective(two(x), labels)
    torch.testing.assert_close(Loss(both, objective, labels)(x, streams()), expected)
    # Stacked copies, as estimators pass them.
    torch.testing.assert_close(
        Loss(both, objective, labels)(x.repeat(2, 1, 1, 1), streams().tile(range(2))),
        expected.repeat(2),
    )
    by_logits = Ensemble([Given(one), Given(two)], [0.25, 0.75])(None)
    assert not torch.allclose(Loss(by_logits, objective, labels)(x, streams()), expected)


@pytest.mark.parametrize("attack", [ProjectedGradient(3, 0.01), APGD(steps=3)])
def test_every_attack_climbs_fused_losses(attack, curved, images, streams):
    """Members that answer with opposite confidence: the mean of logits hides the first, the mean of
    losses does not.
    """
    one, two, x = curved(classes=3), curved(classes=3, seed=1), images()
    labels, members = torch.arange(4) % 3, [Given(one), Given(two)]
    found = {
        fuse: attack(Ensemble(members, None, fuse)(None), x, labels, streams())
        for fuse in ("logits", "losses")
    }

    def mean_loss(adversarial):
        return sum(CrossEntropy()(model(adversarial), labels) for model in (one, two)).mean()

    assert mean_loss(found["losses"]) > mean_loss(x) + 0.01
    assert not torch.equal(found["losses"], found["logits"])


NEAREST = [
    DDN(30, threat=L2(50.0)),
    FMN(30, threat=L2(50.0)),
    NearestBoundary(30, threat=L2(50.0)),
    CarliniWagner(60, 0.05, search_steps=4, initial_c=1.0, threat=L2(50.0)),
]


def curves(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 5))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("attack", NEAREST, ids=lambda attack: type(attack).__name__)
def test_the_nearest_image_is_wrong_by_the_answer_of_fused_losses(attack, known):
    """Members that go wrong by different classes: the mean of their margins is above 0 where the
    margin of their mean is not. What moved is wrong, and nobody is taken for a random model.
    """
    torch.manual_seed(0)
    x, rng = torch.rand(8, 3, 4, 4), Rng.for_images(0, torch.arange(8))
    model = fused([curves(seed) for seed in (1, 2, 3)], None, "losses")
    y = call_model(model, x, rng).argmax(1)
    source = Queried(KnownDraw(model) if known else model)
    found = attack(source, x, y, rng.disclosing(rng))
    wrong, moved = call_model(model, found, rng).argmax(1) != y, (found != x).flatten(1).any(1)
    assert moved.equal(wrong)
    assert wrong.sum() >= (3 if isinstance(attack, CarliniWagner) else 8)
    # One query for each iterate, and two about the images (C&W: and one that judges them); the
    # search on a random model would come on top.
    iterates = source.gradients / len(x)
    judged = 3 if isinstance(attack, CarliniWagner) else 2
    assert source.queries / len(x) == iterates + judged


def test_one_member_that_fuses_losses_tells_by_its_loss(images, curved, streams):
    """There is nothing to be fused, and no query to be paid."""
    model, x = curved(classes=3), images()
    for fuse, members, queries in (("losses", 1, 1), ("losses", 2, 7), ("logits", 2, 1)):
        source = Queried(fused([model] * members, None, fuse))
        FMN(5, threat=L2(50.0))(source, x, model(x).argmax(1), streams())
        assert source.queries == queries * len(x)


def test_random_members_draw_for_themselves(random_linear, images, streams):
    model = random_linear()
    both = Ensemble([Given(model), Given(model)])(None)
    logits = call_model(both, images(), streams())
    expected = (model(images(), streams().fold(0)) + model(images(), streams().fold(1))) / 2
    torch.testing.assert_close(logits, expected)


class Masked(nn.Module):
    """Hides half of its hidden units, drawn from its stream directly; with ``globally`` some noise
    of torch's generator comes on top.
    """

    takes_rng = random = True

    def __init__(self, seed, globally):
        super().__init__()
        torch.manual_seed(seed)
        self.hidden, self.out, self.globally = nn.Linear(192, 16), nn.Linear(16, 3), globally

    def forward(self, images, rng=None):
        hidden = self.hidden(images.flatten(1)).tanh()
        if self.globally:
            hidden = hidden + 0.1 * torch.randn_like(hidden)
        return self.out(hidden * (rng.uniform((16,)) < 0.5).float())


@pytest.mark.parametrize("globally", [False, True])
def test_the_way_back_repeats_what_members_draw_from_their_streams(globally, images, streams):
    """The ensemble computes a member anew on the way back; a member asked alone does not."""
    one, two, x = Masked(1, globally), Masked(2, globally), images()
    apart = [gradient_of_sum(model, x, streams().fold(k)) for k, model in enumerate((one, two))]
    together = fused([one, two], None, "logits")
    for _ in range(2):  # first, and when it is known where members draw from
        found = gradient_of_sum(together, x, streams())
        torch.testing.assert_close(found, (apart[0] + apart[1]) / 2)


def gradient_of_sum(model, x, rng):
    x = x.clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 3.0])
    (found,) = torch.autograd.grad((call_model(model, x, rng) * weights).sum(), x)
    return found


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"members": []}, "members"),
        ({"members": [Target()], "weights": [0.5]}, "weights"),
        ({"members": [Target(), Target()], "weights": [1.0]}, "weights"),
        ({"members": [Target(), Target()], "weights": [2.0, -1.0]}, "weights"),
        ({"fuse": "votes"}, "fuse"),
    ],
)
def test_bad_ensembles_are_named(options, named):
    with pytest.raises(OptionError, match=named):
        Ensemble(**options)


def test_members_of_other_class_counts_are_refused(curved, linear, images, streams):
    both = Ensemble([Given(curved(classes=4)), Given(linear())])(None)
    with pytest.raises(UserError, match="4 and 3 classes"):
        call_model(both, images(), streams())


def test_own_surrogate_is_the_attackers_model_differentiated_as_told(trained, curved, streams):
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    model = load(trained.best)
    for inner in (IdentityBackward(), UnrolledTransform("tanh")):
        source = OwnSurrogate(str(trained.best), inner).opened(READER)(
            DefendedClassifier(None, curved())
        )
        assert torch.equal(gradient(source, x, streams()), gradient(inner(model), x, streams()))
    bare = Checkpoint(str(trained.best)).opened(READER)(None)
    assert torch.equal(bare(x), model.classifier(x))
    whole = Checkpoint(str(trained.best), defended=True).opened(READER)(None)
    assert torch.equal(call_model(whole, x, streams()), model(x, streams()))


def test_own_surrogate_needs_a_defense(trained, tmp_path, monkeypatch):
    undefended = DefendedClassifier(None, load(trained.best).classifier)
    monkeypatch.setattr("robusttrain.config.checkpoints.load", lambda path, trust: undefended)
    with pytest.raises(UserError, match="no defense: --attack transfer-standard"):
        OwnSurrogate("file.ckpt").opened(READER)(None)


@pytest.mark.parametrize("source", [Checkpoint, OwnSurrogate, Reparameterization])
@pytest.mark.parametrize("path", ["", "surrogate:standard"])
def test_a_name_without_a_file_is_told(source, path, curved):
    with pytest.raises(UserError, match="name a file"):
        source(path)(DefendedClassifier(RandomResizePad(10), curved()))


def test_reparameterization_puts_h_in_the_place_of_g(trained, tmp_path, streams):
    target = load(trained.best)
    torch.manual_seed(0)
    h = FullyConvolutional(radius=0.2, channels=1, width=4, depth=2).eval()
    h.save(tmp_path / "h.safetensors")
    source = Reparameterization(str(tmp_path / "h.safetensors")).opened(READER)(target)
    x = torch.rand(3, 1, 16, 16)
    assert torch.equal(source(x), target.classifier(h(x)))
    assert (h(x) - x).abs().max() <= 0.2
    with pytest.raises(UserError, match="no defense that h"):
        Reparameterization(str(tmp_path / "h.safetensors")).opened(READER)(
            DefendedClassifier(None, target.classifier)
        )
    with pytest.raises(UserError, match="no h of a reparameterization"):
        FullyConvolutional.load(next(trained.folder.rglob("f_b/*.safetensors")))


@pytest.mark.parametrize("fuse", ["logits", "probabilities", "losses"])
def test_models_that_repeat_themselves_are_no_random_one(fuse, curved, random_linear, images):
    """An attack on a random model takes votes, and goes on after a success."""
    model = curved()
    together = fused([model, model], None, fuse)
    assert not Queried(together).random
    assert Queried(fused([model, random_linear(3)], None, fuse)).random
    x = images(6)
    y, rng = model(x).argmax(1), Rng.for_images(0, torch.arange(6))
    for attack in (Square(60, threat=Linf(0.2)), RandomNoise(60, threat=Linf(0.2))):
        attack = replace(attack, votes=2)
        alone, both = (attack(each, x, y, rng) for each in (model, together))
        assert torch.equal(alone, both) or fuse != "logits"
        assert (model(both).argmax(1) == y).sum() == (model(alone).argmax(1) == y).sum() < 6
