"""Evaluations on the pretend device: the engine, and all that runs beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_runs import trainer
from pretend_device import BACKEND, DEVICE
from subjects import CLASSES, images_and_labels, network, scenario, shortened
from waits import REAL, counted

import robusttrain
from robusttrain.attacks import Queried, Target
from robusttrain.core.processor import seconds_of
from robusttrain.core.telling import silence
from robusttrain.data import Digits
from robusttrain.defenses import GaussianNoise
from robusttrain.evaluation import Engine, Scenario, pricing
from robusttrain.evaluation.certification import Certification
from robusttrain.evaluation.certify import Smoothed
from robusttrain.evaluation.gradient_work import works_of
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.running import Subject, attack, cost_before
from robusttrain.models.defended import DefendedClassifier

pytestmark = pytest.mark.filterwarnings("ignore")


def attacks(names, steps, epsilon=None):
    """Scenarios of few steps by name."""
    short = {name: Scenario(shortened(scenario(name).attack, steps), Target()) for name in names}
    if epsilon is None:
        return short
    return {
        name: replace(each, attack=each.attack.at_radius(epsilon)) for name, each in short.items()
    }


def digits(batch_size, count=None):
    """So many test images, or all."""
    data = Digits(batch_size=batch_size)
    data.prepare_data()
    data.setup("test")
    if count is not None:
        data.limit_test(count, seed=0)
    return data


def planned(chosen, **options):
    """A plan of attacks that stand beside it, built."""
    node = {"class_path": "of.Somebody"}
    return EvaluationPlan(model=node, data=node, attacks=dict.fromkeys(chosen, node), **options)


#: The most waits of the engine for a batch: the ranges of pixel values and labels, verdicts, rows
#: ...
BATCH = {None: 6, GaussianNoise: 8}
#: ... and for each attack of it: its images, what it asks on entry, whether it stayed inside its
#: threat, verdicts, distances. A random target has verdicts that select, besides.
ATTACK = {None: 9, GaussianNoise: 11}
#: Once for a batch, before its first attack: whether a target that repeats itself still does.
AGAIN = {None: 1, GaussianNoise: 0}


@pytest.mark.parametrize("defense", ATTACK)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_engine_waits_as_often_for_many_steps_as_for_few(defense, steps):
    x, y, _ = images_and_labels(DEVICE, 8)
    target = DefendedClassifier(defense and defense(0.05), network()).eval().to(DEVICE)
    indices = torch.arange(8, device=DEVICE)
    engines = [
        Engine(target, attacks(names, steps), draws=2) for names in ([], ["pgd"], ["pgd", "eot"])
    ]
    found = []
    for engine in engines:
        engine.run(x, y, indices)  # the first batch settles what is random
        with counted() as waits:
            records, _ = engine.run(x, y, indices)
        found.append(waits.total())
        assert records.index.device.type == "cpu"
    assert found[0] <= BATCH[defense], waits.told()
    assert found[1] - found[0] <= ATTACK[defense] + AGAIN[defense], waits.told()
    assert found[2] - found[1] <= ATTACK[defense], waits.told()


def test_its_records_are_those_of_the_cpu():
    found = []
    for device in ("cpu", DEVICE):
        x, y, _ = images_and_labels(device, 8)
        target = DefendedClassifier(GaussianNoise(0.05), network()).eval().to(device)
        engine = Engine(target, attacks(["pgd", "square"], 3), draws=3, keep_images=True)
        found.append(engine.run(x, y, torch.arange(8, device=device))[0])
    for name in ("pgd", "square"):
        one, other = (records.of(name) for records in found)
        assert torch.equal(one.score, other.score)
        torch.testing.assert_close(one.images, other.images, atol=1e-5, rtol=0)


@pytest.mark.skipif(REAL, reason="how often somebody waits is counted on the pretend device")
def test_a_clock_is_read_once_the_device_has_finished(monkeypatch):
    """Else it would tell how long it takes to hand out the work."""

    def finished(call):
        before = BACKEND.finished
        call()
        return BACKEND.finished - before

    x, y, _ = images_and_labels(DEVICE, 8)
    target = DefendedClassifier(None, network()).eval().to(DEVICE)
    engine = Engine(target, attacks(["pgd", "square"], 2))
    rounds = 3  # of a gradient, and of an answer
    assert finished(lambda: engine.measure(x, y)) == 2 * rounds
    assert finished(lambda: engine.run(x, y, torch.arange(8, device=DEVICE))) == 2  # attacks
    smoothed = Smoothed(Queried(target), 0.25, CLASSES, draws=20, choosing=5)
    assert finished(lambda: Certification(engine, smoothed).seconds(x)) == 2
    assert finished(lambda: seconds_of(lambda: target(x), DEVICE, rounds=1)) == 2


class OnTheHost(torch.nn.Module):
    """Another library's model: numpy arrays in, numpy arrays out."""

    def forward(self, images):
        pixels = images.detach().cpu().numpy()
        return np.stack([pixels.mean((1, 2, 3)), pixels[:, :, ::2].mean((1, 2, 3))], axis=1)


def test_answers_of_the_host_come_to_the_device():
    found = []
    for device in ("cpu", DEVICE):
        x, _, _ = images_and_labels(device, 4)
        y = torch.tensor([0, 1, 0, 1])
        engine = Engine(OnTheHost(), attacks(["square"], 2))
        found.append(engine.run(x, y, torch.arange(4, device=device))[0].of("square").score)
    assert torch.equal(*found)


def test_a_whole_evaluation_runs_on_the_device(tmp_path):
    """Audit, curves, other attackers, certificates, examples: by Lightning's trainer, in its
    inference mode.
    """
    target = DefendedClassifier(
        GaussianNoise(0.05), robusttrain.load("digits-standard").classifier
    ).eval()
    data = digits(8, 16)
    chosen = attacks(["eot-l2", "pgd-l2"], 2, epsilon=0.5)
    plan = planned(
        chosen,
        epsilon=0.5,
        draws=2,
        tries=2,
        output=str(tmp_path),
        known_draw=True,
        bare_classifier=True,
        curve=[0.25, 0.5],
        certify=True,
        certify_draws=20,
        certify_choosing=5,
        audit=True,
        audit_images=8,
        save_images=True,
    )
    precisions = {"eot-l2": "float32", "pgd-l2": "bfloat16"}
    subject = Subject(target, "a target", data)
    found = attack(plan, subject, chosen, precisions, trainer())
    assert {each.device for each in target.parameters()} == {DEVICE}
    assert found["images"] == 16
    assert found["clean"]["accuracy"] > 0.8
    assert {"audit", "certificates", "known_draw", "bare_classifier", "curves"} <= {*found}
    # A check that fails says so, and ends no evaluation.
    assert [each for each in found["audit"] if "Error" in each["measured"]] == []


@pytest.mark.parametrize("asks", [attack, cost_before])
def test_its_cost_is_measured_where_it_will_run(tmp_path, monkeypatch, asks):
    """And on a whole batch: an accelerator hardly takes longer for it than for one image."""
    seen = []

    def spied(work, source, images, **kept):
        seen.append((images.device, len(images)))
        return 0.0

    monkeypatch.setattr(pricing, "_seconds", spied)
    data = digits(24, 24)
    chosen = attacks(["pgd", "square"], 2, epsilon=0.05)
    plan = planned(
        chosen,
        epsilon=0.05,
        output=str(tmp_path),
        audit=False,
    )
    subject = Subject(robusttrain.load("digits-standard"), "a target", data)
    types = dict.fromkeys(chosen, "float32")
    if asks is attack:
        attack(plan, subject, chosen, types, trainer())
    else:
        cost_before(plan, subject, chosen, types, DEVICE, silence)
    assert seen == [(DEVICE, 24)] * 2


@pytest.mark.parametrize("device", [torch.device("cpu"), DEVICE])
def test_what_compiling_saves_is_measured_on_a_whole_batch(device):
    data = digits(40)
    whole = len(data.first_test_batch().images)
    assert whole > 32
    images = whole if device == DEVICE else 32
    chosen = attacks(["pgd"], 2, epsilon=0.05)
    target = robusttrain.load("digits-standard")
    (work,) = works_of(target, chosen, {"pgd": torch.float32}, data, 0, device)
    assert work.images == images
    assert work.gradient(images).shape[0] == images
