"""Compiled gradients: the same as plain ones, one graph for all batches, and no verdict among
them.
"""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import robusttrain
from robusttrain.attacks import (
    Linf,
    ProjectedGradient,
    Target,
    UnrolledTransform,
)
from robusttrain.attacks.parts.differentiation import input_gradients
from robusttrain.data import Batch, Digits
from robusttrain.defenses import AdversarialTransform
from robusttrain.evaluation import Engine, Scenario, verdicts
from robusttrain.models import MLP, compiling, fast_copy, fast_twin
from robusttrain.models.compiling import CompilationFailed, gradients_by
from robusttrain.models.defended import DefendedClassifier
from robusttrain.training import NFGSM, RobustTraining
from robusttrain.training.awp import AWP
from robusttrain.training.objectives import TRADES, Adversarial


@pytest.fixture
def graphs(monkeypatch):
    """What was compiled, a graph each; nothing is compiled in earnest."""
    seen = []

    def backend(graph, example):
        seen.append(graph)
        return aot_eager(graph, example)

    monkeypatch.setattr(compiling, "BACKEND", backend)
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


def inner(**options):
    return Adversarial(attack=ProjectedGradient(steps=2), **options)


def gradient(network, images):
    ((_, slope),) = input_gradients(lambda x: [network(x).logsumexp(1)], images)
    return slope


def test_one_graph_serves_batches_of_all_sizes(graphs, convnet, images):
    network = fast_copy(convnet())
    for count in (40, 33, 16, 128, 15, 2, 1):
        x = images(count)
        expected = gradient(network, x)
        with gradients_by("default"):
            torch.testing.assert_close(gradient(network, x), expected)
    assert len(graphs) == 1
    again = fast_copy(convnet(seed=1))
    with gradients_by("default"):
        torch.testing.assert_close(gradient(again, x), gradient(again, x))
    assert len(graphs) == 1  # another network of the same kind


def test_a_network_that_holds_a_model_of_ours_and_clips(graphs):
    """What is known of models that clip is no part of compiled code, where it could not be read."""

    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = robusttrain.load("digits-adversarial")

        def forward(self, points):
            return self.held(points.clamp(0, 1))

    data = Digits()
    data.setup("test")
    batch = data.test_images(torch.arange(8))
    options = {"attacks": "pgd-quick", "threat": Linf(0.15), "audit": False, "progress": False}
    found = [
        robusttrain.evaluate(Holding(), batch.images, batch.labels, compile=mode, **options)
        for mode in ("off", "on")
    ]
    assert found[1].json["compile"]["mode"] == "default"
    assert graphs
    scores = [each.records.of("pgd-quick").score for each in found]
    torch.testing.assert_close(*scores, rtol=0, atol=0)


def test_recordings_are_few_however_many_sizes_batches_have(monkeypatch, convnet, images):
    sizes = []

    def compiled(network, mode):
        def call(x):
            sizes.append(len(x))
            memory.append(network(x))
            return memory[-1]

        return call

    memory = []
    monkeypatch.setattr(compiling, "_compiled", compiled)
    network = fast_copy(convnet())
    for count in (40, 33, 32, 17, 16, 15):
        x = images(count)
        expected = gradient(network, x)
        with gradients_by("reduce-overhead"):
            torch.testing.assert_close(gradient(network, x), expected)
            answer = network(x)
        if count >= 16:
            kept = answer.clone()
            memory[-1].data.zero_()  # as a replay would write into it
            assert torch.equal(answer, kept)
    assert {*sizes} == {64, 32, 16}
    sizes.clear()
    compiling.InTraining(convnet().train(), "reduce-overhead")(images(33))
    assert sizes == [33]  # images of a batch depend on each other there


@pytest.mark.parametrize("objective", [inner(batch_norm="train"), NFGSM()], ids=["pgd", "n-fgsm"])
def test_batches_that_batch_norm_normalises_together_are_not_filled_up(
    monkeypatch, convnet, images, objective
):
    """Images that were filled in would be among the statistics."""
    monkeypatch.setattr(compiling, "_compiled", lambda network, mode: network)
    model, batch = convnet(), Batch(images(20), torch.arange(20) % 3, torch.arange(20))
    found = []
    for mode in ("off", "reduce-overhead"):
        training = RobustTraining(DefendedClassifier(None, copy.deepcopy(model)), 3, objective)
        training.compiled_as(mode)
        training.train()
        torch.manual_seed(0)
        loss, _ = training.losses(batch, 0, 0)
        found.append([loss.detach(), *training.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_no_batch_is_filled_up_for_batch_norm_without_running_statistics(monkeypatch, images):
    monkeypatch.setattr(compiling, "_compiled", lambda network, mode: network)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    network = fast_copy(nn.Sequential(nn.Conv2d(3, 4, 3), norm, pool))
    x = images(20)
    expected = gradient(network, x)
    with gradients_by("reduce-overhead"):
        torch.testing.assert_close(gradient(network, x), expected)


def test_passes_without_a_gradient_are_not_compiled(graphs, convnet, images, streams):
    f_b, network = convnet(), convnet(seed=1)
    g = AdversarialTransform(f_b, None, radius=0.1, steps=2)
    target = DefendedClassifier(g, network)
    labels = torch.zeros(20, dtype=torch.int64)
    with gradients_by("default"):
        with torch.no_grad():
            fast_copy(network)(images(20))
        verdicts(target, images(20), labels, streams(20), 2)  # g takes gradients in there
        assert graphs == []
        target(images(20), streams(20))
    assert len(graphs) == 1
    with gradients_by("default"), gradients_by("off"):
        gradient(fast_copy(MLP(3, 3, image_size=8)), images(20))
    assert len(graphs) == 1


def test_compiled_code_follows_the_weights(graphs, convnet, images):
    model = convnet()
    x = images(20)
    for _ in range(2):
        twin = fast_twin(model)
        expected = gradient(twin, x)
        with gradients_by("default"):
            torch.testing.assert_close(gradient(twin, x), expected)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
    assert len(graphs) == 1


def test_what_cannot_be_compiled_goes_on_without(monkeypatch, convnet, images):
    def broken(graph, example):
        raise RuntimeError("no compiler\nand much more about it")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    torch._dynamo.reset()
    network, x = fast_copy(convnet()), images(20)
    expected = gradient(network, x)
    with gradients_by("default"):
        with pytest.warns(CompilationFailed, match=r"^compile: Sequential: .*no compiler"):
            torch.testing.assert_close(gradient(network, x), expected)
        torch.testing.assert_close(gradient(network, x), expected)  # and says so once


def test_several_gradients_of_one_pass(graphs, convnet, images):
    network, x = fast_copy(convnet()), images(20)

    def all_of_them():
        return [slope for _, slope in input_gradients(lambda x: [*network(x).unbind(1)], x)]

    expected = all_of_them()
    with gradients_by("default"):
        torch.testing.assert_close(all_of_them(), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("source", [Target(), UnrolledTransform()])
def test_verdicts_are_the_same(graphs, curved, convnet, images, source):
    """Also where g is differentiated twice, which compiled code cannot be."""
    target = DefendedClassifier(
        AdversarialTransform(curved(), None, radius=0.1, steps=2), convnet(classes=4)
    )
    attack = ProjectedGradient(steps=4, threat=Linf(0.1), random_start=False)
    x, indices = images(24), torch.arange(24)
    records = []
    for mode in ("off", "default"):
        engine = Engine(target, {"mine": Scenario(attack, source)}, draws=2, compiled=mode)
        before = len(graphs)
        records.append(engine.run(x, torch.arange(24) % 4, indices)[0])
        assert (len(graphs) > before) == (mode == "default")
    for name in ("clean", "mine"):
        first, second = (each.of(name) for each in records)
        assert torch.equal(first.score, second.score)
        assert torch.equal(first.gradients, second.gradients)
        assert first.distance == pytest.approx(second.distance, abs=1e-5)


def test_inductor_compiles_a_small_network(images):
    network, x = fast_copy(MLP(3, 3, image_size=8, width=8)), images(20)
    expected = gradient(network, x)
    torch._dynamo.reset()
    with gradients_by("default"):
        torch.testing.assert_close(gradient(network, x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient(network, x[:17]), expected[:17], atol=1e-5, rtol=1e-4)
    assert network._each["default"].failed is False


def test_other_instructions_have_another_cache(monkeypatch, tmp_path):
    """torch would give AVX2's graphs to a process with AVX-512, which crashed."""
    folders = []
    for capability in ("avx2", "avx2", "default"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        for _ in range(2):  # the second time it is its own already
            compiling.cache_by_instructions()
        folders.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    assert folders[0] == folders[1] != folders[2]
    assert {folder.parent for folder in folders} == {tmp_path}


@pytest.mark.parametrize(
    "objective",
    [inner(batch_norm="train"), TRADES(), AWP(inner())],
    ids=["batch_norm", "trades", "awp"],
)
def test_training_steps(graphs, convnet, images, objective):
    """The same gradients of the weights, random draws of dropout among them, and the same names."""
    model = convnet()
    losses, slopes, names = [], [], []
    for mode in ("off", "default"):
        training = RobustTraining(DefendedClassifier(None, copy.deepcopy(model)), 3, objective)
        training.setup("fit")
        training.compiled_as(mode)
        training.train()
        torch.manual_seed(0)
        for count in (40, 24):
            batch = Batch(images(count), torch.arange(count) % 3, torch.arange(count))
            loss, _ = training.losses(batch, 0, 0)
            training.zero_grad()
            loss.mean().backward()
        losses.append(loss.detach())
        slopes.append(torch.cat([weight.grad.flatten() for weight in training.parameters()]))
        names.append([*training.state_dict()])
    assert graphs
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
    assert torch.cosine_similarity(*slopes, dim=0) > 0.999
    assert names[0] == names[1]
    found = len(graphs)
    training.eval()
    with torch.no_grad():
        training.model(batch.images)
    assert len(graphs) == found  # validation


def test_convolutions_that_onednn_breaks_are_compiled_as_their_equivalent(graphs, images):
    """`exact_convolutions` reaches into what is compiled."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3, 1, 1))

        def forward(self, x):
            return F.conv2d(x, self.weight, stride=2).mean((2, 3))

    training = RobustTraining(DefendedClassifier(None, Own()), 4)
    training.compiled_as("default")
    training.train()
    training.losses(Batch(images(20), torch.arange(20) % 4, torch.arange(20)), 0, 0)
    (graph,) = graphs
    (call,) = [node for node in graph.graph.nodes if "conv2d" in str(node.target)]
    assert 2 not in call.args
    assert (2, 2) not in call.args
