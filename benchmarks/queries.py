r"""HopSkipJump, Square and GenAttack beside Foolbox, torchattacks and ART, at equal budgets on one
model and images.

    python -m benchmarks.queries --root data/cifar10-jpeg --model vgg_small --weights FILE \
        --output queries.json

ART takes part where it is installed (``pip install adversarial-robustness-toolbox``). Only images
that the model gets right are attacked. Everybody's queries are counted at the model itself.
HopSkipJump looks for the nearest adversarial image, so distances are compared, in the norm of the
search; Square and GenAttack have a radius, so success is. GenAttack aims at the likeliest wrong
class. What comes back is judged by the model in float32, whatever an attack ran in. "passes_alone"
is what the network's forward passes alone allow: ours of the folded copy, theirs of the model.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.timing import (
    MEMORY,
    MEMORY_HELP,
    Contenders,
    count_images,
    interleave,
    load_images,
    machine,
    network,
    report_file,
    right_for_all,
    write,
)
from robusttrain import Rng, fast_copy
from robusttrain.attacks import L2, GenAttack, HopSkipJump, Linf, Square, Threat
from robusttrain.evaluation import verdicts, wilson

ART = find_spec("art") is not None
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: By attack of ours: the norm, and the peers that have it.
PEERS = {
    "hopskipjump linf": ["foolbox", "art"],
    "hopskipjump l2": ["foolbox", "art"],
    "square": ["torchattacks", "art"],
    "genattack": ["foolbox"],
}
FAR = 1000.0
#: The passes alone: this many of the whole batch.
PASSES, ALONE = 20, "passes alone"


def contenders(side: str, arguments: argparse.Namespace) -> Contenders:
    """The attacks of one side, each a call without arguments."""
    model, images, labels = material(arguments)
    made = (peers if side == "peers" else ours)(model, images, labels, arguments)
    return {
        name: attack for name, attack in made.items() if name.startswith((*arguments.attack, ALONE))
    }


def peers(
    model: nn.Module, images: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> Contenders:
    """Foolbox's, torchattacks' and ART's."""
    goal = foolbox.criteria.TargetedMisclassification(aims(model, images, labels))
    # ART's search for the boundary in Linf hands over double precision.
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    count_images(model)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    runs: Contenders = {}
    for norm in ("linf", "l2"):
        hop = foolbox.attacks.HopSkipJumpAttack(steps=arguments.hop_steps, constraint=norm)
        runs[f"hopskipjump {norm} foolbox"] = partial(
            _second, hop, wrapped, images, labels, epsilons=None
        )
    square = torchattacks.Square(
        model,
        eps=arguments.epsilon,
        n_queries=arguments.square_queries,
        p_init=0.8,
        resc_schedule=False,
    )
    runs[f"{ALONE} peers"] = partial(passes, model, images)
    runs["square torchattacks"] = partial(square, images, labels)
    genetic = foolbox.attacks.GenAttack(steps=arguments.generations, channel_axis=1)
    runs["genattack foolbox"] = partial(
        _second, genetic, wrapped, images, goal, epsilons=arguments.epsilon
    )
    if ART:
        from art.attacks.evasion import HopSkipJump as ArtHopSkipJump
        from art.attacks.evasion import SquareAttack
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            images.shape[1:],
            int(model(images[:1]).shape[1]),
            clip_values=(0, 1),
        )
        pixels, truth = images.numpy(), labels.numpy()
        for norm, theirs in (("linf", "inf"), ("l2", 2)):
            art_hop = ArtHopSkipJump(
                classifier, norm=theirs, max_iter=arguments.hop_steps, verbose=False
            )
            runs[f"hopskipjump {norm} art"] = partial(_tensor, art_hop, pixels, truth)
        art_square = SquareAttack(
            classifier,
            eps=arguments.epsilon,
            max_iter=arguments.square_queries,
            p_init=0.8,
            batch_size=len(images),
            verbose=False,
        )
        runs["square art"] = partial(_tensor, art_square, pixels, truth)
    return runs


def _second(attack: Any, *arguments: Any, **options: Any) -> Tensor:
    """Foolbox's adversarial images; what it returns first is not clipped to a radius."""
    adversarial: Tensor = attack(*arguments, **options)[1]
    return adversarial


def _tensor(attack: Any, *arguments: Any) -> Tensor:
    """ART's adversarial images."""
    return torch.from_numpy(attack.generate(*arguments))


def ours(
    model: nn.Module, images: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> Contenders:
    """Ours, in both precisions."""
    threat = Linf(arguments.epsilon)
    # Foolbox's numbers: a population of 10, pixels mutated with probability 0.1 by up to 0.15
    # epsilon.
    genetic = GenAttack(
        arguments.generations, 10, 0.10, 0.15, 0.3, adaptive=False, target="second", threat=threat
    )
    attacks = {
        "hopskipjump linf": HopSkipJump(arguments.hop_steps, nearest=True, threat=Linf(FAR)),
        "hopskipjump l2": HopSkipJump(arguments.hop_steps, nearest=True, threat=L2(FAR)),
        "square": Square(arguments.square_queries, threat=threat),
        "genattack": genetic,
    }
    rng = Rng.for_images(0, torch.arange(len(images)))
    images = images.contiguous(memory_format=torch.channels_last)
    runs: Contenders = {}
    for dtype, kind in DTYPES.items():
        copy = fast_copy(model, kind)
        count_images(copy)
        runs[f"{ALONE} ours {dtype}"] = partial(passes, copy, images)
        for name, attack in attacks.items():
            runs[f"{name} ours {dtype}"] = partial(attack, copy, images, labels, rng)
    return runs


def passes(model: nn.Module, images: Tensor) -> Tensor:
    """The batch, after `PASSES` forward passes."""
    with torch.no_grad():
        for _ in range(PASSES):
            model(images)
    return images


def aims(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(B,): the likeliest wrong class."""
    with torch.no_grad():
        return model(images).scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def material(arguments: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, and ``--images`` test images that it gets right, with labels."""
    data, images, labels = load_images(arguments.root, 2 * arguments.images, arguments.data)
    model = network(arguments.model, arguments.weights, data)
    return model, *right_for_all([model], images, labels, arguments.images)


def outcome(
    attack: str, adversarial: Tensor, queries: int, model: nn.Module, images: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Queries for an image, and success with its interval (GenAttack: of the aim), or the median
    distance.
    """
    points = adversarial.float()
    rng = Rng.for_images(0, torch.arange(len(images)))
    if attack == "genattack":
        fell = verdicts(model, points, aims(model, images, labels), rng, 1).squeeze(1)
    else:
        fell = ~verdicts(model, points, labels, rng, 1).squeeze(1)
    asked: dict[str, Any] = {"queries_per_image": round(queries / len(images), 1)}
    if attack.startswith("hopskipjump"):
        threat: Threat = Linf(FAR) if attack.endswith("linf") else L2(FAR)
        distance = torch.where(fell, threat.distance(points, images), torch.inf)
        return {
            **asked,
            "adversarial": int(fell.sum()),
            "median_distance": round(distance.median().item(), 5),
        }
    rate = fell.double().mean().item()
    return {
        **asked,
        "success": round(rate, 4),
        "ci95": [round(end, 4) for end in wilson(rate, len(fell))],
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: for each attack and peer, our throughput relative to its, and outcomes."""
    seconds, results, asked = interleave(contenders, arguments)
    judges = material(arguments)
    attacks = {name: attack for name in results for attack in PEERS if name.startswith(attack)}
    outcomes = {
        name: outcome(attack, results[name], asked[name], *judges)
        for name, attack in attacks.items()
    }

    def beside(attack: str, peer: str) -> dict[str, Any]:
        theirs = f"{attack} {peer}"
        mine = {dtype: f"{attack} ours {dtype}" for dtype in DTYPES}
        return {
            "throughput_relative_to_theirs": {
                dtype: round(seconds[theirs] / seconds[name], 2) for dtype, name in mine.items()
            },
            # Those who end earlier do less: the same for each query.
            "queries_per_second_relative_to_theirs": {
                dtype: round(
                    seconds[theirs]
                    / seconds[name]
                    * outcomes[name]["queries_per_image"]
                    / outcomes[theirs]["queries_per_image"],
                    2,
                )
                for dtype, name in mine.items()
            },
            "theirs": outcomes[theirs],
            "ours": {dtype: outcomes[name] for dtype, name in mine.items()},
        }

    named = (
        "data",
        "model",
        "images",
        "epsilon",
        "hop_steps",
        "square_queries",
        "generations",
        "rounds",
        "memory",
    )
    return {
        "command": "python -m benchmarks.queries " + " ".join(arguments.command),
        "machine": machine(),
        "art": ART,
        **{name: getattr(arguments, name) for name in named},
        "passes_alone": {
            dtype: round(seconds[f"{ALONE} peers"] / seconds[f"{ALONE} ours {dtype}"], 2)
            for dtype in DTYPES
        },
        "comparisons": {
            attack: {peer: beside(attack, peer) for peer in names if f"{attack} {peer}" in results}
            for attack, names in PEERS.items()
            if attack in arguments.attack
        },
    }


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument(
        "--data", choices=("imagefolder", "imagenet"), default="imagefolder", help="its layout"
    )
    parser.add_argument("--model", default="vgg_small", help="model preset")
    parser.add_argument("--weights", help="its weights")
    parser.add_argument(
        "--images", type=int, default=50, help="one batch of at most this many images"
    )
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument("--hop_steps", type=int, default=10, help="HopSkipJump's")
    parser.add_argument("--square_queries", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=100, help="GenAttack's, of 10 images")
    parser.add_argument("--attack", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--rounds", type=int, default=0, help="timed rounds after a first one; 0 times the first"
    )
    parser.add_argument("--memory", choices=MEMORY, default="as-run", help=MEMORY_HELP)
    parser.add_argument("--output", type=report_file, default="results/benchmarks/queries.json")
    arguments = parser.parse_args()
    arguments.command = sys.argv[1:]
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
