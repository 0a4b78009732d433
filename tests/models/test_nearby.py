"""Answers about changed squares: those of the network, however they were come by."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.models import CifarResNet, VGGSmall, fast_copy, nearby, reach
from robusttrain.models.nearby import Near, remembering
from robusttrain.models.reach import Span
from robusttrain.models.tracing import traced


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be computed in part is, however little that saves."""
    monkeypatch.setattr(reach, "STEP", 0)
    monkeypatch.setattr(reach, "WORTH", 0.0)
    monkeypatch.setattr(reach, "LARGEST", 0.95)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many steps each pass in part computed in part."""
    counted: list[int] = []

    class Counting(nearby._Pass):
        def run(self, *arguments: Any, **options: Any) -> Any:
            if self.plan.spans:
                counted.append(len(self.plan.spans))
            return super().run(*arguments, **options)

    monkeypatch.setattr(nearby, "_Pass", Counting)
    return counted


class Mixed(nn.Module):
    """What the packaged networks do not have: dilation, groups, padded pooling, averages, batch
    norm before an activation, kernels that are no squares, sums of unlike reach.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, (3, 5), padding=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.beside = nn.Conv2d(8, 8, 3, stride=2, padding=1)  # sees zeros beyond the border
        self.narrow = nn.Conv2d(8, 8, 1)
        self.average = nn.AvgPool2d(2)
        self.act = nn.Tanh()
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(images)), inplace=True)
        x = self.act(self.dilated(x)) + self.act(x)
        x = self.pool(x) + self.beside(x)
        x += self.narrow(x)
        x = self.drop(self.average(x)).mul_(2.0)
        return self.classifier(x.mean(dim=(2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation: each pixel depends on all others from there on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Linear(8, 8)
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.conv(images))
        x = x * torch.sigmoid(self.gate(x.mean(dim=(2, 3))))[:, :, None, None]
        return self.classifier(self.after(x).amax(dim=(2, 3)))


NETWORKS = {
    "vgg": lambda: VGGSmall(width=8),
    "resnet": lambda: CifarResNet(widths=(8, 16), blocks=2),
    "strided": lambda: CifarResNet(widths=(8, 16), blocks=1, stem_stride=2),
    "mixed": Mixed,
    "gated": Gated,
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            module.bias.data.uniform_(-0.5, 0.5)
    return network.eval().requires_grad_(False)


def changed(points: Tensor, side: int, rng: torch.Generator, corner: Any = None) -> Tensor:
    """The points with a square of noise, at a place of its own in each image."""
    points = points.clone()
    for image in points:
        top, left = corner or torch.randint(0, 33 - side, (2,), generator=rng).tolist()
        image[:, top : top + side, left : left + side] = torch.rand(3, side, side, generator=rng)
    return points


def close(logits: Tensor, others: Tensor) -> bool:
    return bool((logits - others).abs().max() <= 1e-5 * others.abs().max())


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_a_span_holds_exactly_what_a_window_carries_on(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    of, side = 13, 2
    span = Span.of_change(side, of).through(kernel, stride, padding, dilation)
    weight = torch.ones(1, 1, kernel)
    for place in range(of - side + 1):
        line = torch.zeros(1, 1, of)
        line[..., place : place + side] = 1
        seen = F.conv1d(line, weight, None, stride, padding, dilation).flatten()
        assert len(seen) == span.of
        rows = seen.nonzero().flatten().tolist()
        if rows:
            assert (span.first[place], span.last[place]) == (rows[0], rows[-1])
        start = span.start[place]
        assert 0 <= start <= start + span.length <= span.of
        assert all(start <= row < start + span.length for row in rows)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_those_of_the_network_whatever_is_kept(name: str, parts: list[int]) -> None:
    network = build(name)
    near = Near(network)
    rng = torch.Generator().manual_seed(1)
    points = torch.rand(6, 3, 32, 32, generator=rng)

    def ask(images: Tensor) -> Tensor:
        return network(images.clone())

    sides = [9, 3, 1, 4, 2, 14, 3, 5, 3, 20, 1, 2, 7, 3]
    assert close(near(points, ask), ask(points))
    near.keep(torch.ones(6, dtype=torch.bool))
    for number, side in enumerate(sides * 2):
        points_new = changed(points, side, rng)
        assert close(near(points_new, ask), ask(points_new)), (number, side)
        accepted = torch.rand(len(points), generator=rng) < (0.5 if number % 3 else 0.0)
        near.keep(accepted)
        points = torch.where(accepted[:, None, None, None], points_new, points)
        if number in (8, 17):
            left = torch.arange(len(points))[1:]
            near.among(left)
            points = points[left]
    assert len(parts) >= 20
    assert max(parts) >= 2


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("corner", [(0, 0), (0, 30), (30, 0), (30, 30), (29, 15), (1, 1)])
def test_changes_at_the_border_are_seen(corner: tuple[int, int]) -> None:
    for name in NETWORKS:
        network = build(name)
        near, rng = Near(network), torch.Generator().manual_seed(2)
        points = torch.rand(3, 3, 32, 32, generator=rng)
        near(points, network)
        near.keep(torch.ones(3, dtype=torch.bool))
        for side in (1, 2):
            new = changed(points, side, rng, corner)
            assert close(near(new, network), network(new))
            near.keep(torch.zeros(3, dtype=torch.bool))
        assert close(near(points, network), network(points))  # nothing changed at all


def test_how_much_is_saved() -> None:
    """Square's last squares, on the network of the paper's f_b: two thirds of the work."""
    network = fast_copy(VGGSmall()).network
    near, images = Near(network), torch.rand(2, 3, 32, 32)
    near(images, network)
    near.keep(torch.ones(2, dtype=torch.bool))
    near(images, network)
    plans = {side: near._planned(side) for side in (1, 2, 4, 7, 20)}
    saved = {side: plan.saved / plan.work for side, plan in plans.items()}
    assert [round(saved[side], 2) for side in (1, 2, 4, 7)] == [0.72, 0.7, 0.65, 0.62]
    assert saved[20] < reach.WORTH
    assert not plans[2].worth(2)  # each step in part has its price
    assert plans[2].worth(64)


class Shifted(nn.Module):
    """A number of Python's, which reading the steps fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shift = nn.Conv2d(3, 4, 3), 0.0

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).amax(dim=(2, 3)) + self.shift * torch.eye(4)[0]


@pytest.mark.usefixtures("eager")
def test_a_network_that_answers_otherwise_is_asked_in_full(
    monkeypatch: pytest.MonkeyPatch, parts: list[int]
) -> None:
    monkeypatch.setattr(nearby, "OFTEN", 3)
    network = Shifted().eval().requires_grad_(False)
    near, rng = Near(network), torch.Generator().manual_seed(3)
    points = torch.rand(4, 3, 32, 32, generator=rng)
    near(points, network)
    near.keep(torch.ones(4, dtype=torch.bool))
    answers = []
    for step in range(8):
        network.shift = 0.0 if step < 2 else 1.0
        new = changed(points, 3, rng)
        answers.append(close(near(new, network), network(new)))
        near.keep(torch.zeros(4, dtype=torch.bool))
    # Compared at the first and at the fourth, and never computed in part again.
    assert answers == [True, True, False, True, True, True, True, True]
    assert len(parts) == 4
    assert near.network is None


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("asked", ["twice for a step", "about other images", "another verdict"])
def test_who_asks_in_another_way_is_answered_in_full(asked: str, parts: list[int]) -> None:
    network = build("vgg")
    near, rng = Near(network), torch.Generator().manual_seed(4)
    points = torch.rand(4, 3, 32, 32, generator=rng)
    everyone = torch.ones(4, dtype=torch.bool)
    near(points, network)
    near.keep(everyone)
    for number in range(3):
        new = changed(points, 2, rng)
        assert close(near(new, network), network(new))
        if asked == "twice for a step":
            assert close(near(new.flip(3), network), network(new.flip(3)))
        if number == 0 and asked == "about other images":
            near.keep(~everyone)
            assert close(near(new[:3], network), network(new[:3]))
        near.keep(everyone[:2] if asked == "another verdict" else ~everyone)
    assert near.network is None
    assert len(parts) == 1


def test_one_sure_image_does_not_hide_another() -> None:
    logits = torch.tensor([[1e6, 0.0], [1.0, 0.0], [0.0, 0.0]])
    off = torch.zeros(3, 2)
    assert nearby.same(logits + off, logits)
    off[1, 1] = 1e-6
    assert nearby.same(logits + off, logits)
    off[1, 1] = 1e-2
    assert not nearby.same(logits + off, logits)
    assert not nearby.same(logits * torch.nan, logits)
    assert nearby.same(logits[:, 0], logits[:, 0])


def test_what_would_not_fit_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, eager: None, parts: list[int]
) -> None:
    monkeypatch.setattr(nearby, "MEMORY", 1000)
    network = build("vgg")
    near, rng = Near(network), torch.Generator().manual_seed(5)
    points = torch.rand(4, 3, 32, 32, generator=rng)
    near(points, network)
    near.keep(torch.ones(4, dtype=torch.bool))
    new = changed(points, 2, rng)
    assert torch.equal(near(new, network), network(new))
    assert not parts


@pytest.mark.usefixtures("eager")
def test_a_fast_copy_answers_from_memory_where_a_search_remembers(parts: list[int]) -> None:
    network = build("resnet")
    fast, rng = fast_copy(network), torch.Generator().manual_seed(6)
    points = torch.rand(4, 3, 32, 32, generator=rng)
    new = changed(points, 3, rng)
    expected = fast(new)
    with remembering() as memory, torch.no_grad():
        fast(points)
        memory.keep(torch.ones(4, dtype=torch.bool))
        assert close(fast(new), expected)
        memory.keep(torch.zeros(4, dtype=torch.bool))
        assert len(parts) == 1
        with torch.enable_grad():  # a defense's inner attack may want gradients
            leaf = new.clone().requires_grad_()
            torch.autograd.grad(fast(leaf).sum(), leaf)
        assert len(parts) == 1
        assert close(fast(new), expected)
    assert len(parts) == 2
    with torch.no_grad():
        assert torch.equal(fast(new), expected)  # as ever outside
    assert len(parts) == 2


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [(5, 32), (32, 5), (1, 32), (32, 1)])
def test_changes_that_are_longer_than_an_image_is_high(
    size: tuple[int, int], parts: list[int]
) -> None:
    """The budget of Square in L2 moves between two windows: together they may be any rectangle."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    network.eval().requires_grad_(False)
    near, rng = Near(network), torch.Generator().manual_seed(7)
    points = torch.rand(2, 3, *size, generator=rng)
    near(points, network)
    near.keep(torch.ones(2, dtype=torch.bool))
    for start in (0, 9, 16):
        new = points.clone()
        across = new if size[1] > size[0] else new.transpose(2, 3)
        across[..., start : start + 12] = torch.rand(across[..., :12].shape, generator=rng)
        assert close(near(new, network), network(new))
        near.keep(torch.zeros(2, dtype=torch.bool))
    assert len(parts) == 3


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
def test_answers_in_inference_mode_of_a_search_that_is_not_in_it(
    number: torch.dtype, parts: list[int]
) -> None:
    """As a defense of somebody's own may ask; and a network may round its answers."""

    class Rounding(CifarResNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).to(number)

    torch.manual_seed(0)
    fast = fast_copy(Rounding(widths=(8, 16), blocks=1).eval())
    rng = torch.Generator().manual_seed(8)
    points = torch.rand(4, 3, 32, 32, generator=rng)
    with remembering() as memory, torch.no_grad():
        for side in (3, 3, 2, 2):
            new = changed(points, side, rng)
            with torch.inference_mode():
                answer = fast(new)
            assert answer.dtype == torch.float32
            assert close(answer, fast_copy(fast.network)(new)) or number == torch.bfloat16
            accepted = torch.rand(4, generator=rng) < 0.5
            memory.keep(accepted)
            points = torch.where(accepted[:, None, None, None], new, points)
    assert len(parts) == 3


class Noting(nn.Module):
    """Keeps what it saw last, and a mean over passes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mean, self.seen = nn.Conv2d(3, 4, 3), 0.0, []

    def forward(self, images: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * images.mean()
        self.seen.append(images.shape)
        return self.conv(images).amax(dim=(2, 3))


@pytest.mark.usefixtures("eager")
def test_reading_a_network_leaves_it_as_it_was() -> None:
    network = Noting().eval().requires_grad_(False)
    network(torch.rand(2, 3, 8, 8))
    before = dict(vars(network), seen=[*network.seen])
    steps = traced(network)
    assert steps is not None
    assert vars(network) == before
    assert steps.module.conv.weight is network.conv.weight


class Bounded(nn.Module):
    """Reads again what was written to in place, which seldom makes a difference."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.way, self.same = nn.Conv2d(3, 4, 3, padding=1), way, nn.Identity()
        self.bound = nn.Hardtanh(-1e6, 2.0, inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        if self.way == "layer":
            y = self.bound(x)
        elif self.way == "behind nothing":
            y = self.bound(self.same(x))
        elif self.way == "function":
            y = F.hardtanh(x, -1e6, 2.0, inplace=True)
        else:
            y = x.clamp_(max=2.0)
        return (x + self.same(y) if self.way != "not again" else y).amax(dim=(2, 3))


@pytest.mark.parametrize("way", ["layer", "behind nothing", "function", "method", "not again"])
def test_networks_that_read_what_they_wrote_to_are_asked_in_full(way: str) -> None:
    assert (traced(Bounded(way).eval()) is not None) == (way == "not again")


class Meanwhile(nn.Module):
    """Another thread asks another network, and looks at the weights of this one, in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        network = build("vgg")

        def ask() -> tuple[Any, Any]:
            return network(torch.ones(1, 3, 32, 32)), self.conv.weight

        with ThreadPoolExecutor(1) as pool:
            kinds = {isinstance(each, Tensor) for each in pool.submit(ask).result()}
        assert kinds == {True}
        return self.norm(self.conv(images)).amax(dim=(2, 3))


def test_reading_a_network_leaves_other_threads_alone() -> None:
    network = Meanwhile().eval()
    assert traced(network) is not None
    assert fast_copy(network, example=torch.rand(2, 3, 8, 8)).folded == 1


@pytest.mark.usefixtures("eager")
def test_hooks_see_every_pass_of_the_whole(parts: list[int]) -> None:
    """One of a single layer leaves the others to be computed in part."""
    for name, in_part in (("", False), ("stages", False), ("stages.1.1.conv2", True)):
        network, seen = build("resnet"), []
        part = network.get_submodule(name)
        part.register_forward_hook(lambda *given, seen=seen: seen.append(type(given[2])))
        near, rng = Near(network), torch.Generator().manual_seed(9)
        points = torch.rand(2, 3, 32, 32, generator=rng)
        near(points, network)
        near.keep(torch.ones(2, dtype=torch.bool))
        for asked in range(2, 5):
            near(changed(points, 2, rng), network)
            near.keep(torch.zeros(2, dtype=torch.bool))
            assert len(seen) >= asked
        assert {*seen} == {Tensor}
        assert (near.network is not None) == in_part


@pytest.mark.usefixtures("eager")
def test_steps_that_fail_on_what_was_cut_are_asked_in_full(
    monkeypatch: pytest.MonkeyPatch, parts: list[int]
) -> None:
    network = build("resnet")
    near, rng = Near(network), torch.Generator().manual_seed(10)
    points = torch.rand(2, 3, 32, 32, generator=rng)
    near(points, network)
    near.keep(torch.ones(2, dtype=torch.bool))

    def fails(*arguments: Any) -> Tensor:
        raise RuntimeError("view size is not compatible")

    monkeypatch.setattr(nearby, "cut", fails)
    new = changed(points, 2, rng)
    assert torch.equal(near(new, network), network(new))
    assert parts
    assert near.network is None


def test_networks_that_cannot_be_read_as_steps_are_asked_in_full() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            x = self.conv(images)
            return (x if x.sum() > 0 else -x).amax(dim=(2, 3))

    assert traced(Branching().eval()) is None
    # Statistics of the batch: whatever follows depends on all pixels.
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert traced(nn.Sequential(norm, nn.Conv2d(3, 4, 3)).eval()) is None
    assert traced(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)).eval()) is None
    assert traced(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")).eval()) is (
        None
    )
