"""Models, labels and images that none of us made: the same attack as on a plain module, or one
line.
"""

import threading
import warnings
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import robusttrain
from robusttrain.attacks import (
    APGD,
    DDN,
    FAB,
    FMN,
    L2,
    Average,
    AverageLogits,
    CarliniWagner,
    DeepFool,
    FiniteDifference,
    GenAttack,
    HopSkipJump,
    Linf,
    Margin,
    MinimalNorm,
    NearestBoundary,
    Normalized,
    Optimization,
    ProjectedGradient,
    Queried,
    RandomNoise,
    Restarts,
    Several,
    Square,
    SuperDeepFool,
    Target,
    TargetedMargin,
)
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.core.errors import UserError
from robusttrain.evaluation import Engine, Scenario, check_classes
from robusttrain.evaluation.precision import measure_speeds
from robusttrain.models import fast_copy

LABELS = torch.tensor([0, 1, 2, 0])
PGD = ProjectedGradient(steps=4, step_size=0.01)
ATTACKS = {
    "pgd": PGD,
    "pgd-l2": ProjectedGradient(3, 0.1, threat=L2(0.3), rule=Normalized()),
    "eot": ProjectedGradient(3, 0.01, gradient=Average(2)),
    "logits": ProjectedGradient(3, 0.01, gradient=AverageLogits(2)),
    "differences": ProjectedGradient(2, 0.01, gradient=FiniteDifference(4)),
    "apgd": APGD(6),
    "fab": FAB(4, targets=2, restarts=2),
    "cw": CarliniWagner(4, search_steps=2, threat=L2(0.5)),
    "ddn": DDN(4, threat=L2(0.5)),
    "deepfool": DeepFool(4, threat=L2(0.5)),
    "superdeepfool": SuperDeepFool(2, 3, threat=L2(0.5)),
    "fmn": FMN(4),
    "nearest": NearestBoundary(4),
    "genattack": GenAttack(4),
    "square": Square(30),
    "square-l2": Square(30, threat=L2(0.5)),
    "hopskipjump": HopSkipJump(2, evaluations=4, tries=8),
    "noise": RandomNoise(40),
    "optimization": Optimization(3, 0.01),
    "restarts": Restarts(PGD, 2),
    "several": Several([APGD(3), Square(20)]),
    "minimal": MinimalNorm(APGD(3), steps=2),
}


class InceptionOutputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class Says(nn.Module):
    """Another module's logits, said otherwise."""

    def __init__(self, model, how):
        super().__init__()
        self.model, self.how = model, how

    def forward(self, images):
        return self.how(self.model(images))


@pytest.mark.parametrize(
    "how",
    [
        lambda z: (z, None),
        lambda z: {"logits": z},
        lambda z: z[:, :, None, None],
        lambda z: z.squeeze(0) if len(z) == 1 else z,
        lambda z: z.log_softmax(dim=1),
    ],
    ids=["tuple", "dict", "(B, K, 1, 1)", "squeezed", "log-probabilities"],
)
@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "deepfool", "square", "cw"])
def test_the_same_attack_whatever_form_the_logits_have(how, name, linear, images, streams):
    for part in (slice(None), slice(1)):
        x, y, rng = images()[part], LABELS[part], streams()[part]
        expected = ATTACKS[name](linear(), x, y, rng)
        found = ATTACKS[name](Says(linear(), how), x, y, rng)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["pgd", "apgd", "fab", "deepfool", "cw", "square"])
def test_probabilities_are_attacked_through_their_logarithm(name, linear, images, streams):
    sure = linear(scale=1.0)
    with pytest.warns(UserWarning, match="answers with probabilities"):
        found = ATTACKS[name](Says(sure, lambda z: z.softmax(dim=1)), images(), LABELS, streams())
    expected = ATTACKS[name](sure, images(), LABELS, streams())
    assert ((found - expected).abs() < 1e-4).double().mean() > 0.99


def test_it_is_said_once_and_of_nothing_else(linear, images, streams):
    one_hot = Says(linear(), lambda z: F.one_hot(z.argmax(dim=1), 3))
    for how in (
        lambda z: z,
        lambda z: z * 0,
        lambda z: z[:, :2] * 0,
        lambda z: z * torch.nan,
        lambda z: z.log_softmax(1),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Queried(Says(linear(), how))(images(), streams())
    # These two logits look like probabilities by chance: other images tell.
    chance = Says(linear(2), lambda z: z - z.detach()[:1] + torch.tensor([0.25, 0.75]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Queried(chance)(images()[:1], streams()[:1]).tolist() == [[0.25, 0.75]]
    for model in (one_hot, Says(linear(), lambda z: z.softmax(dim=1))):
        queried = Queried(model)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(3):
                queried(images(), streams())
        assert ["probabilities" in str(each.message) for each in told] == [True]


def test_a_sigmoid_is_two_classes_and_half_is_where_they_meet(linear, images, streams):
    two = linear(1)
    labels = (two(images()) > 0).long().squeeze(1)
    sigmoid = Says(two, lambda z: z.sigmoid().squeeze(1))
    with pytest.warns(UserWarning, match="probability of class 1"):
        logits = Queried(sigmoid)(images(), streams())
    assert torch.equal(logits.argmax(dim=1), labels)
    assert len(set(labels.tolist())) == 2
    with pytest.warns(UserWarning, match="probability of class 1"):
        found = PGD(sigmoid, images(), labels, streams())
    torch.testing.assert_close(found, PGD(two, images(), labels, streams()), rtol=0, atol=1e-6)


# Labels.


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32, torch.float64])
def test_labels_are_whole_numbers_of_any_type(dtype, linear, images, streams):
    expected = PGD(linear(), images(), LABELS, streams())
    assert torch.equal(PGD(linear(), images(), LABELS.to(dtype), streams()), expected)
    engine = Engine(linear(), {"pgd": Scenario(PGD, Target())})
    records, _ = engine.run(images(), LABELS.to(dtype), torch.arange(4))
    assert records.rows["pgd"].label.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS + 1, r"must lie in 0\.\.2, since there are 3 classes; got 1\.\.3: subtract 1"),
        (LABELS - 1, r"must not be negative, got -1\.\.1"),
        (torch.tensor([0, -100, 2, 0]), r"must not be negative, got -100\.\.2"),
        (torch.tensor([1, -1, 1, -1]), r"got -1\.\.1: give \(labels \+ 1\) // 2"),
        (LABELS + 0.5, r"fractions in \[0.5, 2.5\]"),
        (LABELS * torch.nan, "fractions"),
        (torch.eye(4)[:, :3], r"expected one per image, \(4,\), got \(4, 3\)"),
    ],
)
def test_other_labels_are_refused_in_one_line(labels, words, linear, images, streams):
    asked = [
        lambda: PGD(linear(), images(), labels, streams()),
        lambda: Engine(linear(), {"pgd": Scenario(PGD, Target())}).run(
            images(), labels, torch.arange(4)
        ),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)


# Types.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_works_in_every_type(name, dtype, linear, images, streams):
    attack, model, x = ATTACKS[name], linear().to(dtype), images().to(dtype)
    found = attack(model, x, LABELS, streams())
    assert (found.dtype, found.shape) == (dtype, x.shape)
    assert attack.threat.distance(found.double(), x.double()).max() <= attack.threat.epsilon + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    # Images of one type, weights of another
    assert attack(model, x.float(), LABELS, streams()).dtype == torch.float32
    assert attack(linear(), x, LABELS, streams()).dtype == dtype


@pytest.mark.parametrize("name", ATTACKS)
def test_wider_types_change_no_number_that_is_drawn(name, linear, images, streams):
    found = ATTACKS[name](linear().double(), images().double(), LABELS, streams())
    expected = ATTACKS[name](linear(), images(), LABELS, streams())
    assert ((found - expected).abs() < 1e-4).double().mean() > 0.98


@pytest.mark.parametrize("name", ATTACKS)
def test_the_callers_default_type_is_no_matter(name, linear, images, streams):
    model, x = linear(), images()
    expected = ATTACKS[name](model, x, LABELS, streams())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            found = ATTACKS[name](model, x, LABELS, streams())
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert ((found - expected).abs() < 1e-4).double().mean() > 0.98


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["deepfool", "fab"])
def test_what_is_adversarial_stays_so_in_a_shorter_type(name, dtype, linear, images, streams):
    """Attacks that stop just behind the boundary lose nothing to rounding."""
    attack, model, x = ATTACKS[name], linear().to(dtype), images(32).to(dtype)
    labels = model(x).argmax(dim=1)
    wide = attack(model, x.float(), labels, streams(32))
    broken = model(wide.to(dtype)).argmax(dim=1) != labels
    assert broken.sum() > 8
    short = attack(model, x, labels, streams(32))
    assert (short.dtype, short.min() >= 0, short.max() <= 1) == (dtype, True, True)
    assert attack.threat.distance(short.double(), x.double()).max() <= attack.threat.epsilon + 1e-6
    assert (model(short).argmax(dim=1) != labels)[broken].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_verdicts_of_models_in_other_types(dtype, linear, images):
    model, x = linear(scale=1.0), images(32)
    labels = model(x).argmax(dim=1)
    scores = []
    for kind in (torch.float32, dtype):
        engine = Engine(linear(scale=1.0).to(kind), {"pgd": Scenario(PGD, Target())})
        rows = engine.run(x, labels, torch.arange(32))[0].rows
        scores.append([rows[stage].score.double().mean().item() for stage in ("clean", "pgd")])
    assert scores[0] == pytest.approx(scores[1], abs=1 / 16)


def test_rounding_outside_of_the_box_is_clamped_and_more_is_refused(linear, images, streams):
    x = images()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -1e-7, 1 + 1e-7
    assert torch.equal(
        PGD(linear(), x, LABELS, streams()), PGD(linear(), x.clamp(0, 1), LABELS, streams())
    )
    Engine(linear(), {"pgd": Scenario(PGD, Target())}).run(x, LABELS, torch.arange(4))
    x[0, 0, 0, 0] = -1e-4
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], got \[-0.0001, 1\]"):
        PGD(linear(), x, LABELS, streams())
    with pytest.raises(UserError, match="divide 8-bit images by 255"):
        PGD(linear(), (images() * 255).to(torch.uint8), LABELS, streams())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_empty_batch_gives_an_empty_batch(name, linear, images, streams):
    found = ATTACKS[name](linear(), images()[:0], LABELS[:0], streams(0))
    assert (found.shape, found.dtype) == ((0, 3, 8, 8), torch.float32)


def test_the_engine_takes_an_empty_batch(linear, images):
    engine = Engine(linear(), {"pgd": Scenario(PGD, Target())})
    records, _ = engine.run(images()[:0], LABELS[:0], torch.arange(0))
    assert len(records.rows["pgd"].label) == 0


# Modules.


class Checkpointed(nn.Module):
    """Activation checkpointing of the reentrant kind."""

    def __init__(self, reentrant=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)
        self.reentrant = reentrant

    def forward(self, images):
        features = checkpoint(self.first, images, use_reentrant=self.reentrant)
        return self.second(features.tanh().flatten(1))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", ["pgd", "eot", "logits", "apgd", "fab", "deepfool", "cw"])
def test_reentrant_checkpoints_are_differentiated(name, images, streams):
    model = Checkpointed()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    expected = ATTACKS[name](Checkpointed(reentrant=False), images(), LABELS, streams())
    found = ATTACKS[name](model, images(), LABELS, streams())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (model.first.weight.grad == 1).all()
    assert model.second.weight.grad is None
    engine = Engine(model, {name: Scenario(ATTACKS[name], Target())})
    engine.measure(images(), LABELS)
    measure_speeds(model, images())
    assert model.second.weight.grad is None


def test_another_error_of_a_backward_pass_is_not_swallowed(images):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(input_gradients(lambda x: [Broken.apply(x).sum((1, 2, 3))], images()))


class Remembering(nn.Module):
    """Keeps features of its last pass, in several places."""

    in_channels, image_size = 3, 8

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.kept = nn.Conv2d(3, 4, 3), nn.Linear(144, 3), {}

    def forward(self, images):
        self.last = self.conv(images)
        self.kept["maps"] = [self.last * 2]
        return self.head(self.last.flatten(1))


def normed(wrap):
    return nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize(
    "build",
    [
        Remembering,
        lambda: normed(nn.utils.weight_norm),
        lambda: normed(nn.utils.spectral_norm),
        lambda: normed(nn.utils.parametrizations.weight_norm),
        lambda: normed(nn.utils.parametrizations.spectral_norm),
        lambda: torch.jit.script(normed(nn.Identity().forward)),
        lambda: torch.jit.trace(normed(nn.Identity().forward), torch.rand(1, 3, 8, 8)),
    ],
    ids=[
        "remembers",
        "weight_norm",
        "spectral_norm",
        "new weight_norm",
        "new spectral_norm",
        "script",
        "trace",
    ],
)
def test_after_a_training_step_a_model_can_be_attacked(build, images):
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model(images()), LABELS).backward()
    optimizer.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [weight.grad.clone() for weight in model.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        fast = fast_copy(model, dtype)
        assert model.training
        with torch.no_grad():
            found = fast(images())
        model.eval()
        expected = model(images()).detach()
        model.train()
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Engine(model, {"pgd": Scenario(PGD, Target())}).run(images(), LABELS, torch.arange(4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.requires_grad for weight in model.parameters())
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(weight.grad, gradient)
    assert model.training


def test_functions_are_evaluated(linear, images):
    engine = Engine(linear().forward, {"pgd": Scenario(PGD, Target())})
    assert engine.run(images(), LABELS, torch.arange(4))[0].rows["pgd"].score.shape == (4, 1)


class Wrapped(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)


class Locked(Wrapped):
    """Cannot be copied."""

    def __init__(self, model):
        super().__init__(model)
        self.lock = threading.Lock()


class Looking(Wrapped):
    """Looks at values, and keeps a count."""

    calls = 0

    def forward(self, images):
        self.calls += 1
        if images.mean().item() > 2:
            raise ValueError("no image")
        return super().forward(images)


def exported(model):
    return torch.export.export(model, (torch.rand(4, 3, 8, 8),)).module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "wrap",
    [
        Wrapped,
        Locked,
        Looking,
        nn.DataParallel,
        exported,
        torch.fx.symbolic_trace,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: Says(model, lambda z: [z, z * 2]),
        lambda model: Says(model, lambda z: InceptionOutputs(z, z * 2)),
    ],
    ids=[
        "Lightning",
        "lock",
        "item",
        "parallel",
        "exported",
        "fx",
        "averaged",
        "compiled",
        "exits",
        "inception",
    ],
)
def test_wrappers_of_others_change_nothing(wrap, images):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), images()
    labels = model(x).argmax(dim=1)
    found = []
    for target in (model, wrap(model)):
        engine = Engine(target, {"pgd": Scenario(PGD, Target())}, keep_images=True)
        found.append(engine.run(x, labels, torch.arange(4))[0].rows["pgd"])
    torch.testing.assert_close(found[1].images, found[0].images, rtol=0, atol=1e-6)
    assert torch.equal(found[1].score, found[0].score)
    assert getattr(target, "calls", 0) == 0


@pytest.mark.filterwarnings("ignore")
def test_answers_without_a_gradient_can_be_asked_for_and_are_refused_where_one_is_needed(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    silent = [
        quantised,
        Says(net, lambda z: z.detach().numpy()),
        Says(net, lambda z: (10 * z).round().int()),
        lambda images: net(images.detach()),
    ]
    for model in silent:
        queried = Queried(model)
        labels = queried(images()).argmax(dim=1)
        square = Engine(model, {"square": Scenario(Square(30), Target())})
        assert square.run(images(), labels, torch.arange(4))[0].rows["square"].attacked.all()
        with pytest.raises(UserError, match="does not depend differentiably"):
            PGD(model, images(), labels)


def test_who_answers_nan_is_never_right(linear, images):
    engine = Engine(Says(linear(), lambda z: z * torch.nan), {"pgd": Scenario(PGD, Target())})
    assert not engine.run(images(), LABELS, torch.arange(4))[0].rows["pgd"].score.any()


class Abstains(nn.Module):
    """Answers class 0, or NaN where its margin is less than it is at an image: a detector."""

    def __init__(self, model, image):
        super().__init__()
        self.model = model
        self.least = self.margin(self.logits(image)).item() - 0.01

    def logits(self, images):
        return self.model(images) + 10 * torch.eye(3)[0]

    def margin(self, logits):
        return (logits[:, 0] - logits[:, 1:].amax(dim=1))[:, None]

    def forward(self, images):
        logits = self.logits(images)
        return torch.where(self.margin(logits) < self.least, torch.nan, logits)


@pytest.mark.parametrize("attack", [APGD(5), APGD(5, random_start=False), Square(30)], ids=str)
def test_an_image_that_a_model_rejects_has_fallen(attack, linear, images, streams):
    """In scoring such an answer is wrong, so attacks that find it hand it back."""
    x, labels = images()[:1].repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    model = Abstains(linear(), x[:1])
    assert model(attack(model, x, labels, streams())).isnan().all()


@pytest.mark.parametrize("name", ["apgd-ce", "square", "fmn-linf", "nearest-linf", "pgd", "fab-t"])
def test_an_image_that_a_model_rejects_is_not_right_under_attack(name, linear, images):
    attack = robusttrain.attack(name, epsilon=0.05).attack.scaled(0.1)
    x, labels = images()[:1].repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    engine = Engine(Abstains(linear(), x[:1]), {name: Scenario(attack, Target())})
    rows = engine.run(x, labels, torch.arange(4))[0].rows
    assert rows[name].attacked.all()
    assert not rows[name].score.any()


class Rejects(nn.Module):
    """Answers NaN to any image that is farther than a hair from its own, as a detector might."""

    def __init__(self, model, image):
        super().__init__()
        self.model, self.image = model, image

    def forward(self, images):
        logits = 0.1 * self.model(images) + 5 * torch.eye(3)[0]
        far = (images - self.image).flatten(1).abs().mean(dim=1) > 0.01
        return torch.where(far[:, None], torch.nan, logits)


@pytest.mark.parametrize("name", ["random-noise", "genattack", "superdeepfool", "cw", "d-cw"])
def test_what_looks_for_a_wrong_answer_keeps_a_rejected_image(name, linear, images, streams):
    attack = robusttrain.attack(name).attack
    epsilon = 1.0 if attack.threat.norm == "l2" else 0.1
    attack = robusttrain.attack(name, epsilon=epsilon).attack.scaled(0.05)
    x, labels = images()[:1].repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    model = Rejects(linear(), x[:1])
    assert not model(x).isnan().any()
    assert model(attack(model, x, labels, streams())).isnan().all()


class FourAtOnce(nn.Linear):
    """Needs a fixed batch size."""

    def forward(self, images):
        return super().forward(images.view(4, -1))


class ChannelsLast(nn.Linear):
    """Takes (B, H, W, C), and says so by its error."""

    def forward(self, images):
        if images.shape[-1] != 3:
            raise ValueError("expected 3 channels last")
        return super().forward(images.flatten(1))


class Bytes(nn.Embedding):
    """Takes whole numbers."""

    def forward(self, images):
        return super().forward(images.flatten(1)).mean(1)


class Mistaken(nn.Linear):
    def forward(self, images):
        return super().forward(images.flatten(1)).logits


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            Mistaken(192, 3),
            r"AttributeError: 'Tensor' object .* \(.*test_foreign_models.py, line \d+\) \(images",
        ),
        (nn.Linear(5, 3), r"cannot be multiplied \(24x8 and 5x3\) \(images are floats"),
        (FourAtOnce(192, 3), "takes 4 images and not one: .* any number"),
        (
            ChannelsLast(192, 3),
            r"images of \(3, 8, 8\): expected 3 channels last .*\[0, 1\], channels first\)$",
        ),
        (Bytes(256, 3), r"cannot take images of \(3, 8, 8\): .*images are floats"),
    ],
)
def test_models_that_take_something_else_are_refused_in_one_line(model, words, images):
    with pytest.raises(UserError, match=words) as caught:
        check_classes(model, images(), 3)
    assert "\n" not in str(caught.value)


# Few classes.


def test_one_class_is_refused(linear, images):
    with pytest.raises(UserError, match="cannot be wrong"):
        check_classes(linear(1), images(), 1)


FEW = {
    "apgd-ce": APGD(30),
    "apgd-margin": APGD(30, objective=Margin()),
    "apgd-t": APGD(30, targets=9, objective=TargetedMargin("second")),
    "fab": FAB(30),
    "square": Square(1500),
}


@pytest.mark.parametrize("scale", [1.0, pytest.param(1e3, marks=pytest.mark.long), 1e-3])
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("name", FEW)
def test_a_linear_model_of_two_classes_falls_where_it_must(name, single, scale, linear, images):
    """Right within Linf epsilon if and only if the margin exceeds epsilon |w|_1."""
    x, epsilon = images(64), 0.02
    two = linear(2, scale=1.0)
    weight, bias = (two.weight[1] - two.weight[0]).detach(), (two.bias[1] - two.bias[0]).detach()
    margin = x.flatten(1) @ weight + bias
    # A margin of the images' own size: half of them fall.
    margin, bias = margin - margin.median(), bias - margin.median()
    labels = (margin > 0).long()
    stands = margin.abs() > epsilon * weight.abs().sum()

    def model(images):
        z = (images.flatten(1) @ weight + bias) * scale
        return z if single else torch.stack([-z / 2, z / 2], dim=1)

    assert 0.2 < stands.double().mean() < 0.8
    attack = FEW[name].within(Linf(epsilon))
    rows = (
        Engine(model, {name: Scenario(attack, Target())}).run(x, labels, torch.arange(64))[0].rows
    )
    found = rows[name].score[:, 0]
    wrong = (found != stands) & ((margin.abs() / (epsilon * weight.abs().sum()) - 1).abs() > 1e-3)
    if name == "square":  # sees no gradient: it may miss those near the edge, and never more
        assert (found & wrong).sum() <= 6
        assert not (~found & wrong).any()
    elif name == "apgd-ce" and scale == 1e3:
        # Its loss is flat where the softmax is saturated: what the margin is there for.
        assert (found & wrong).any()
        assert not (~found & wrong).any()
    else:
        assert not wrong.any()


class Viewed(nn.Module):
    """Takes features for rows of numbers, as much published code does: no other format will do."""

    def __init__(self, reshapes=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.reshapes = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3), reshapes

    def forward(self, images):
        x = self.first(images).relu()
        return self.last(x.reshape(len(x), -1) if self.reshapes else x.view(len(x), -1))


def test_a_model_that_views_its_features_is_attacked_in_the_format_that_it_needs(images, streams):
    x = images().contiguous(memory_format=torch.channels_last)
    model, other = Viewed(), Viewed(reshapes=True)
    torch.testing.assert_close(
        PGD(model, x, LABELS, streams()), PGD(other, x, LABELS, streams()), rtol=0, atol=1e-6
    )
    fast, plain = fast_copy(Viewed()), fast_copy(other)
    torch.testing.assert_close(fast(x), plain(x))
    torch.testing.assert_close(fast(x), plain(x))  # and once more, when it is known
    one, two = (
        Engine(each, {"pgd": Scenario(PGD, Target())}).run(x, LABELS, torch.arange(4))[0]
        for each in (Viewed(), other)
    )
    assert torch.equal(one.of("pgd").right, two.of("pgd").right)


def test_other_errors_of_a_forward_pass_stay_what_they_are(images):
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        PGD(Broken(), images(), LABELS)
