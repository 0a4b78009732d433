"""Convolutions and short trainings, held against float64, under every instruction set there is.

    python -m tests.core.convolutions

Each instruction set of the processor has a process of its own, because a broken kernel may end it.
Prints a line for each of them, and one that begins with "wrong" for each mistake.
"""

import copy
import itertools
import os
import platform
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robusttrain.core.memory_format import exact_convolutions, use_fastest_format
from robusttrain.models import CifarResNet

KERNELS, STRIDES, CHANNELS = (1, 2, 3), (1, 2, 3, (1, 2)), (1, 2, 3, 4, 6, 7, 8, 12, 15, 16, 17)
TOLERANCE = 2e-5


class Functional(nn.Module):
    """A network that calls the function, as weight standardisation does."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.stride, self.groups = (
            convolution.weight,
            convolution.stride,
            convolution.groups,
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, stride=self.stride, groups=self.groups)


class StartsStrided(nn.Module):
    """A user's network that starts with a 1 x 1 convolution of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 1, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images).mean((2, 3)))


def passes(network: nn.Module, images: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, and the gradients with respect to images and weights."""
    points = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with exact_convolutions(torch.device("cpu")):
        out = network(points)
    out.backward((weights[: out.numel()].view(out.shape)).to(out.dtype))
    return [out.detach(), points.grad, network.weight.grad]


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def table() -> int:
    count, rng = 0, torch.Generator().manual_seed(0)
    directions = torch.rand(200_000, generator=rng)
    for kernel, stride, channels in itertools.product(KERNELS, STRIDES, CHANNELS):
        images = torch.rand(8, channels, 12, 13, generator=rng)
        for groups in {1, channels}:
            torch.manual_seed(0)
            convolution = nn.Conv2d(
                channels, 8 if groups == 1 else channels, kernel, stride, groups=groups, bias=False
            )
            exact = passes(copy.deepcopy(convolution).double(), images.double(), directions)
            for network in (convolution, Functional(copy.deepcopy(convolution))):
                use_fastest_format(network)
                found = passes(
                    network, images.contiguous(memory_format=torch.channels_last), directions
                )
                worst = [error(*pair) for pair in zip(found, exact, strict=True)]
                count += 1
                if max(worst) > TOLERANCE:
                    what = f"kernel {kernel} stride {stride} channels {channels} groups {groups}"
                    print(
                        f"wrong: {type(network).__name__} {what}: output, images, weights off by"
                        f" {worst}"
                    )
    return count


def trained(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """The weights after a few steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


def trainings() -> int:
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 10
    makers = {
        "CifarResNet 4 8 8": lambda: CifarResNet(widths=[4, 8, 8], blocks=1),
        "CifarResNet 2 4 4": lambda: CifarResNet(widths=[2, 4, 4], blocks=1),
        "starts with 1 x 1, stride 2": StartsStrided,
    }
    for name, make in makers.items():
        torch.manual_seed(0)
        plain = make()
        fast = copy.deepcopy(plain)
        use_fastest_format(fast)
        assert list(fast.state_dict()) == list(plain.state_dict())
        expected = trained(plain.double(), images.double(), labels)
        found = trained(fast, images.contiguous(memory_format=torch.channels_last), labels)
        worst = max(error(*pair) for pair in zip(found, expected, strict=True))
        if worst > 1e-3:
            print(f"wrong: {name}: weights off by {worst} after training")
    return len(makers)


def instruction_sets() -> list[str]:
    """Those of oneDNN that this processor has, the oldest first; "" for what it takes by itself."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return [""]
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    needs = {
        "SSE41": "sse4_1",
        "AVX": "avx",
        "AVX2": "avx2",
        "AVX2_VNNI": "avx_vnni",
        "AVX512_CORE": "avx512_dq",
        "AVX512_CORE_VNNI": "avx512_vnni",
        "AVX512_CORE_BF16": "avx512_bf16",
        "AVX512_CORE_FP16": "avx512_fp16",
        "AVX512_CORE_AMX": "amx_tile",
    }
    # oneDNN takes its best where a name asks for more than there is.
    return [name for name, flag in needs.items() if has.get(flag, True)] + [""]


def child(name: str) -> int:
    """Everything under one instruction set, in a process of its own: its exit code, negative for a
    signal.

    The parent must not have computed anything: oneDNN and ATen look at these variables when they
    first work.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if name:
        os.environ["ONEDNN_MAX_CPU_ISA"] = name
        if not name.startswith("AVX512"):
            os.environ["ATEN_CPU_CAPABILITY"] = "avx2" if name.startswith("AVX2") else "default"
    under = f"{name or 'as it is'}, {torch.backends.cpu.get_cpu_capability()}"
    print(f"{under}: {table()} convolutions, {trainings()} trainings")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in instruction_sets():
        if code := child(name):
            print(f"wrong: under {name or 'its own instructions'} the process ended with {code}")
