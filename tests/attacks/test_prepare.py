"""Readying a model for attack, and putting everything back whatever happens."""

from threading import Event, Thread

import pytest
import torch
from torch import nn

from robusttrain.attacks import ProjectedGradient, Queried, prepared
from robusttrain.attacks.prepare import following
from robusttrain.core.rng import Rng


def trained() -> nn.Sequential:
    """A network in the middle of training, with a frozen batch norm and a frozen parameter."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2))
    )
    network.train()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    return network


def state(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [part.training for part in model.modules()], [
        value.requires_grad for value in model.parameters()
    ]


def test_inside_everything_is_ready():
    model = trained()
    with torch.inference_mode(), prepared(model):
        assert state(model) == ([False] * 6, [False] * 6)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        images = torch.zeros(2, 1, 5, 5, requires_grad=True)
        assert torch.autograd.grad(model(images).sum(), images)[0].shape == images.shape


@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_everything_is_as_before(fails):
    model = trained()
    before, statistics, random = (
        state(model),
        model[2][1].running_mean.clone(),
        torch.get_rng_state(),
    )
    assert before == ([True, True, False, True, True, True], [True, False, True, True, True, True])
    try:
        with torch.no_grad(), prepared(model):
            model(torch.rand(2, 1, 5, 5))
            torch.rand(3)
            torch.manual_seed(0)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert state(model) == before
    assert torch.equal(model[2][1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_gradients_of_parameters_are_left_alone():
    model = trained()
    model[0].weight.grad = torch.full_like(model[0].weight, 3)
    with prepared(model):
        images = torch.rand(2, 1, 5, 5, requires_grad=True)
        model(images).sum().backward()
    assert (model[0].weight.grad == 3).all()
    assert all(value.grad is None for name, value in model.named_parameters() if name != "0.weight")


def test_a_graph_built_before_still_goes_backward():
    """Adversarial training may attack between its forward and its backward pass."""
    model = trained().double()
    loss = model(torch.rand(4, 1, 5, 5, dtype=torch.float64)).square().sum()
    with prepared(model):
        model(torch.rand(4, 1, 5, 5, dtype=torch.float64))
    loss.backward()
    assert model[0].weight.grad.abs().max() > 0


class Stubborn(nn.Module):
    """Keeps its dropout awake, and does more than that when it is told to evaluate."""

    def __init__(self):
        super().__init__()
        self.dropout, self.inner, self.readied = nn.Dropout(), nn.BatchNorm2d(1), 0

    def eval(self):
        super().eval()
        self.dropout.train()
        self.readied += 1
        return self

    def forward(self, images):
        return self.inner(self.dropout(images))


@pytest.mark.parametrize("wrap", [lambda model: model, Queried])
def test_a_module_is_in_the_state_that_its_own_eval_gives(wrap):
    model = Stubborn().train()
    model.inner.eval()
    with prepared(wrap(model)):
        assert (model.training, model.dropout.training, model.inner.training) == (
            False,
            True,
            False,
        )
        assert model.readied == 1
    assert [part.training for part in model.modules()] == [True, True, False]
    assert model.readied == 0


class Busy(nn.Module):
    """Does in its forward pass what networks of others do there."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), None
        self.calls, self.seen, self.last, self.cache = 0, [], None, {"old": 1}
        self.plain, self.free = torch.zeros(2), torch.ones(3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, images):
        images.sub_(0.5).mul_(2)
        self.calls += 1
        self.train()
        features = self.norm(self.conv(images))
        self.last, self.new = features, features
        self.seen.append(images)
        self.cache["new"] = self.cache.pop("old", None)
        with torch.no_grad():
            self.count += 1
            self.plain += features.mean().item()
            self.mean = 0.9 * self.mean + 0.1 * features.mean((0, 2, 3))
            self.free.data.add_(1)
        if self.head is None:
            self.head = nn.Linear(2, 3)
            self.handle = self.conv.register_forward_hook(lambda *_: None)
        return self.head(features.mean((2, 3)))


def test_a_forward_pass_may_do_what_it_does_in_ordinary_use(images):
    model = Busy().eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    x = images(channels=1)
    kept = x.clone()
    ProjectedGradient(steps=3, step_size=0.01)(model, x, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(x, kept)
    assert [part.training for part in model.modules()] == [False] * 4
    assert (model.calls, model.seen, model.last, model.cache) == (0, [], None, {"old": 1})
    assert not hasattr(model, "new")
    assert not model.conv._forward_hooks
    assert (model.plain == 0).all()
    assert (model.free == 1).all()
    assert {*dict(model.named_buffers())} == {*before}
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    # What the first pass has built stays: another one would draw other weights.
    assert isinstance(model.head, nn.Linear)
    assert model.head.weight.requires_grad
    weight = model.head.weight
    ProjectedGradient(steps=1, step_size=0.01)(model, x, torch.tensor([0, 1, 2, 0]))
    assert model.head.weight is weight


def test_a_lazy_layer_is_built_once(images):
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    attack, labels = ProjectedGradient(steps=2, step_size=0.01), torch.tensor([0, 1, 2, 0])
    attack(model, images(), labels)
    weight = model[1].weight.clone()
    attack(model, images(), labels)
    assert torch.equal(model[1].weight, weight)
    assert model.training
    assert model[1].training
    assert model[1].weight.requires_grad


def test_statistics_that_are_meant_to_follow_do():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1))
    with following([model[0]]), prepared(model):
        model.train()
        model(torch.rand(4, 1, 3, 3))
    assert model[0].num_batches_tracked == 1
    assert model[1].num_batches_tracked == 0


def test_it_nests():
    model = trained()
    before = state(model)
    with prepared(model):
        with prepared(model):
            pass
        assert state(model) == ([False] * 6, [False] * 6)
    assert state(model) == before


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_threads_at_once(first_out):
    """Whoever ends first: the model stays ready for the other, and is as before when both left."""
    model = trained()
    model.register_buffer("passes", torch.zeros(1))
    before, generator = state(model), torch.get_rng_state()
    weights = [value.grad for value in model.parameters()]
    enter, leave = ([Event(), Event()] for _ in range(2))

    def attack(number):
        with prepared(model):
            enter[number].set()
            assert leave[number].wait(10)

    threads = [Thread(target=attack, args=(number,)) for number in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        assert enter[number].wait(10)
        model.passes += 1
        torch.rand(1)
    for number in (first_out, 1 - first_out):
        assert state(model) == ([False] * 6, [False] * 6)
        leave[number].set()
        threads[number].join(10)
    assert state(model) == before
    assert [value.grad for value in model.parameters()] == weights
    assert model.passes.item() == 0
    assert torch.equal(torch.get_rng_state(), generator)


def test_two_attacks_at_once_find_what_each_finds_alone():
    images, labels = (
        torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0)),
        torch.ones(4),
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(25, 3))
    attacks = [ProjectedGradient(steps=steps) for steps in (60, 90)]
    rng = Rng.for_images(0, torch.arange(4))
    alone = [attack(model, images, labels, rng) for attack in attacks]
    together = [images] * 2

    def run(number):
        together[number] = attacks[number](model, images, labels, rng)

    threads = [Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(map(torch.equal, together, alone))
    assert state(model) == ([True] * 4, [True] * 2)


class Odd(nn.Module):
    """Buffers that share their numbers, that get other memory in a pass, and that lie elsewhere."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1), 0.5).expand(1, 4, 4))
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("bank", torch.zeros(0, 3))
        self.register_buffer("turned", torch.rand(2, 3, dtype=torch.float64).t())
        self.register_buffer("last", torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last))

    def forward(self, x):
        self.passes.data = self.passes.data + 1
        self.bank.data = torch.cat([self.bank.data, torch.ones(1, 3)])
        self.turned += 1
        self.last.mul_(2)
        return (x - self.mean).flatten(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_buffers_of_any_kind(device):
    model = Odd().to(device)
    before = {name: value.clone() for name, value in model.named_buffers()}
    places = [value.data_ptr() for value in model.buffers()]
    with prepared(model):
        for _ in range(2 if device == "cpu" else 0):
            model(torch.rand(2, 1, 4, 4))
    assert [value.data_ptr() for value in model.buffers()] == places
    for name, value in model.named_buffers():
        assert value.shape == before[name].shape
        assert device == "meta" or torch.equal(value, before[name])
    assert model.last.is_contiguous(memory_format=torch.channels_last)
