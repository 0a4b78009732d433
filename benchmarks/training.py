r"""One step of PGD adversarial training: ours, a plain loop, ART's trainer and the bare limit, in
one run.

    python -m benchmarks.training --root data/cifar10-jpeg --model resnet_small \
        --output training.json
    python -m benchmarks.training --root data/cifar10-jpeg --defense advtransform --weights F_B \
        --output behind-g.json

Same network, images and attack, taking turns. The plain loop is how released code trains: float32
(and bfloat16 under autocast, where it has that at all), the model as it was built, ``backward()``
in every step of the attack, which computes the gradients of all weights as well. The limit is what
no implementation of these steps can beat with this network: for each inner step one forward pass
and one backward pass to the input, with batch norm folded as evaluation mode allows, then one
forward and backward pass for the weights in training mode; no attack, no update, in the dtype and
memory format of ours. Behind g (``--defense``, identity backward), each of these passes has one of
g before it: ours, but for the plain loop, which has the straightforward one of
`benchmarks.transform`.

ART's trainer takes part where ``art`` can be imported.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import (
    MEMORY,
    MEMORY_HELP,
    Contenders,
    add_device,
    compiled,
    interleave,
    load_images,
    machine,
    network,
    report_file,
    write,
)
from benchmarks.training_peers import art_trainer, autocast, optimizer_of, plain_loop
from benchmarks.transform import compile_g
from robusttrain import DefendedClassifier, Rng, fast_copy
from robusttrain.attacks import IdentityBackward, Linf, ProjectedGradient, Target
from robusttrain.config.build import build, fit_to_data
from robusttrain.config.presets import read
from robusttrain.core.memory_format import use_fastest_format
from robusttrain.data import Batch
from robusttrain.data.augment import crop_and_flip
from robusttrain.data.base import as_float
from robusttrain.data.batches import EpochBatches, Split, loader
from robusttrain.defenses import Defense
from robusttrain.models.twin import fast_twin
from robusttrain.training import Adversarial, RobustTraining

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def ours(
    model: DefendedClassifier, batch: Batch, attack: ProjectedGradient, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A step of `RobustTraining`, as Lightning's loop takes it."""
    source = IdentityBackward() if model.defense is not None else Target()
    module = RobustTraining(model, 10, Adversarial(attack, source)).to(batch.images.device).train()
    module.setup("fit")
    optimizer = optimizer_of(model)

    def step() -> Tensor:
        with autocast(batch.images, dtype):
            losses, _ = module.losses(batch, 0, 0)
        loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def limit(
    model: DefendedClassifier, batch: Batch, arguments: argparse.Namespace, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """The passes alone."""
    images = batch.images.contiguous(memory_format=torch.channels_last)
    trained = model.classifier.train()
    use_fastest_format(trained)
    folded = fast_copy(trained, dtype)
    compiled(folded.network, arguments)
    weights = list(trained.parameters())

    def step() -> Tensor:
        for _ in range(arguments.steps):
            point = images.detach()
            if model.defense is not None:
                point = model.defense(point)
            point.requires_grad_()
            loss = F.cross_entropy(folded(point), batch.labels, reduction="sum")
            torch.autograd.grad(loss, point)
        point = images if model.defense is None else model.defense(images)
        with autocast(images, dtype):
            loss = F.cross_entropy(trained(point), batch.labels)
        torch.autograd.grad(loss, weights)
        return loss.detach()

    return step


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """Steps of one side, each a call without arguments that returns the loss."""
    data, images, labels = load_images(arguments.root, arguments.images, device=arguments.device)
    batch = Batch(images, labels, torch.arange(len(images), device=images.device))
    attack = ProjectedGradient(
        steps=arguments.steps, step_size=arguments.epsilon / 4, threat=Linf(arguments.epsilon)
    )

    def model(dtype: torch.dtype) -> DefendedClassifier:
        built = DefendedClassifier(
            defense(arguments, data, dtype), network(arguments.model, None, data)
        )
        built.to(arguments.device).train()
        if arguments.compiled:
            compile_g(built.defense, arguments)
            # What the inner attack differentiates on our side is a copy of its own
            for part in {built.classifier, fast_twin(built.classifier, dtype)}:
                compiled(getattr(part, "network", part), arguments)
        return built

    chosen = {name: DTYPES[name] for name in arguments.dtypes}
    if side == "peers":
        named = {
            f"plain loop {name}": plain_loop(model(torch.float32), batch, attack, dtype)
            for name, dtype in chosen.items()
        }
        if importlib.util.find_spec("art") and arguments.defense is None:
            named["ART float32"] = art_trainer(model(torch.float32), batch, attack)
        return named
    batch = batch._replace(images=images.contiguous(memory_format=torch.channels_last))
    named = {
        f"ours {name}": ours(model(dtype), batch, attack, dtype) for name, dtype in chosen.items()
    }
    named |= {
        f"limit {name}": limit(model(dtype), batch, arguments, dtype)
        for name, dtype in chosen.items()
    }
    return named | {"data path": data_path(images, labels)}


def defense(arguments: argparse.Namespace, data: Any, dtype: torch.dtype) -> Defense | None:
    """The defense of ``--defense``, with f_b's weights if there are any; g in the type of
    training.
    """
    if arguments.defense is None:
        return None
    node = copy.deepcopy(read("defense", arguments.defense)["defense"])
    if arguments.weights:
        node["init_args"]["weights"] = arguments.weights
    if dtype == torch.bfloat16 and node["class_path"].endswith("AdversarialTransform"):
        node["init_args"]["precision"] = "bfloat16"
    fit_to_data(node, data.facts(), "defense")
    torch.manual_seed(0)
    built: Defense = build(node, "defense", kind=Defense)
    return built


def data_path(images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Everything between memory and the step: indexing a batch of uint8 images, cropping, flipping,
    floats.
    """
    size, copies = len(images), 20  # more images than processors keep at hand
    pixels = (255 * images).round().to(torch.uint8).cpu()
    split = Split(pixels.repeat(copies, 1, 1, 1), labels.cpu().repeat(copies))
    batches = loader(split, EpochBatches(len(split), size, shuffle=True, drop_last=True), workers=0)
    waiting: Iterator[Batch] = iter(())
    device = images.device

    def fetch() -> Tensor:
        nonlocal waiting
        batch = next(waiting, None)
        if batch is None:
            waiting = iter(batches)
            batch = next(waiting)
        batch = Batch(*(part.to(device) for part in batch))
        return as_float(
            crop_and_flip(batch.images, Rng.for_images(0, batch.indices), 4, True)
        ).mean()

    return fetch


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: times relative to the limit and to the plain loop of the same dtype, by
    contender.
    """
    begun = time.perf_counter()
    seconds, _, _ = interleave(contenders, arguments)
    plain = seconds.get("plain loop float32", seconds[f"plain loop {arguments.dtypes[0]}"])
    return {
        "command": "python -m benchmarks.training " + " ".join(arguments.command),
        "machine": machine(arguments.device),
        **({"compiled": True} if arguments.compiled else {}),
        "model": arguments.model,
        "defense": arguments.defense,
        "images": arguments.images,
        "steps": arguments.steps,
        "epsilon": arguments.epsilon,
        "rounds": arguments.rounds,
        "memory": arguments.memory,
        "seconds_in_all": round(time.perf_counter() - begun),
        "time_relative_to_limit": {
            name: round(seconds[f"ours {name}"] / seconds[f"limit {name}"], 3)
            for name in arguments.dtypes
        },
        "speed_relative_to_plain_loop_float32": {
            name: round(plain / spent, 2) for name, spent in seconds.items() if name != "data path"
        },
        "speed_relative_to_plain_loop_of_the_same_dtype": {
            name: round(seconds[f"plain loop {name}"] / seconds[f"ours {name}"], 2)
            for name in arguments.dtypes
        },
        "data_path_as_a_share_of_our_step": {
            name: round(seconds["data path"] / seconds[f"ours {name}"], 4)
            for name in arguments.dtypes
        },
    }


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="image folder with train/ and test/ or val/")
    parser.add_argument("--model", default="resnet_small", help="model preset")
    parser.add_argument("--defense", help="defense preset; a step behind g, by identity backward")
    parser.add_argument(
        "--weights", help="of its f_b; without, one that is untrained, which takes as long"
    )
    parser.add_argument("--images", type=int, default=128, help="of a batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    add_device(parser)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/training.json")
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
