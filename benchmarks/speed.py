"""Times on one device, in one process: PGD, g, EOT, AutoAttack or a training step, as the modules
`benchmarks.pgd`, `transform`, `eot`, `autoattack` and `training` have them.

    python -m benchmarks.speed pgd --device cuda --output pgd.json

Ours, the peers that are installed, the released loop and the bare limit take turns. ``--compiled``
does so with every network through ``torch.compile``. Without ``--root`` the images are embedded
digits, and networks are untrained, which takes as long.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks import autoattack, eot, pgd, training, transform
from benchmarks.timing import (
    Contenders,
    load_images,
    machine,
    network,
    report_file,
    take_turns,
    write,
)
from benchmarks.training_peers import identity_backward
from robusttrain import DefendedClassifier
from robusttrain.defenses import AdversarialTransform

#: What a torch.compile that fails, and a GPU whose memory is full, raise.
FAILURES = (RuntimeError, NotImplementedError)


class ReleasedTarget(nn.Module):
    """f_a(g(.)) as `benchmarks.training_peers` writes it, for attacks of others."""

    def __init__(self, target: DefendedClassifier) -> None:
        super().__init__()
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        """Logits, with the identity for g's derivative."""
        return identity_backward(self.target, images)


def times_of_pgd(arguments: argparse.Namespace, peers: bool) -> Contenders:
    """PGD: ours and the limit in float32 and bfloat16, torchattacks, Foolbox."""
    own = pgd.contenders("ours", arguments)
    return own | (pgd.contenders("peers", arguments) if peers else {})


def times_of_g(arguments: argparse.Namespace, peers: bool) -> Contenders:
    """g: ours and the limit in float32 and bfloat16, the released loop."""
    theirs = transform.contenders("peers", arguments)
    return transform.contenders("ours", arguments) | {"loop": theirs["straightforward"]}


def times_of_eot(arguments: argparse.Namespace, peers: bool) -> Contenders:
    """A gradient of BPDA-I with EOT: ours and the passes alone, by dtype; the released loop's
    target under torchattacks' EOTPGD.
    """
    all_of_them: Contenders = {}
    for precision in ("float32", "bfloat16"):
        own = argparse.Namespace(**{**vars(arguments), "precision": precision})
        all_of_them[f"ours {precision}"] = eot.contenders("ours", own)["eot"]
        all_of_them[f"limit {precision}"] = eot.contenders("peers", own)["plain"]
    if peers:
        import torchattacks

        data, images, labels = load_images(
            arguments.root, arguments.images, device=arguments.device
        )
        f_b = compiled_network("vgg_small", arguments.weights, data, arguments)
        f_a = compiled_network(arguments.model, None, data, arguments)
        g = AdversarialTransform(f_b, steps=13).to(arguments.device)
        model = ReleasedTarget(DefendedClassifier(g, f_a)).eval()
        theirs = torchattacks.EOTPGD(
            model, eps=0.031, alpha=0.002, steps=1, eot_iter=arguments.timed_draws
        )
        all_of_them["torchattacks"] = partial(theirs, images, labels)
    return all_of_them


def compiled_network(
    preset: str, weights: str | None, data: Any, arguments: argparse.Namespace
) -> nn.Module:
    """A network on the device, compiled where that is asked for."""
    return pgd.compiled(network(preset, weights, data, arguments.device), arguments)


def times_of_autoattack(arguments: argparse.Namespace, peers: bool) -> Contenders:
    """APGD-CE and the whole AutoAttack, ours and torchattacks'; the passes of APGD-CE alone."""
    calls = autoattack.contenders("ours", arguments)
    if peers:
        calls |= autoattack.contenders("peers", arguments)
    own = argparse.Namespace(
        **{**vars(arguments), "steps": autoattack.STEPS, "peers_keep_parameter_gradients": False}
    )
    calls["apgd-ce limit"] = pgd.contenders("ours", own)["limit float32"]
    return {" ".join(reversed(name.split())): call for name, call in calls.items()}


def times_of_training(arguments: argparse.Namespace, peers: bool) -> Contenders:
    """A step of adversarial training by dtype: ours, the limit, the released loop, the data."""
    own = training.contenders("ours", arguments)
    return own | training.contenders("peers", arguments)


PARTS: dict[str, Callable[[argparse.Namespace, bool], Contenders]] = {
    "pgd": times_of_pgd,
    "g": times_of_g,
    "eot": times_of_eot,
    "autoattack": times_of_autoattack,
    "training": times_of_training,
}


def beside(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Times of ours relative to whatever has the same last word (a dtype, an attack), or one word
    alone.
    """

    def same(name: str, other: str) -> bool:
        words = other.split()
        return words[0] != "ours" and (len(words) == 1 or words[-1] == name.split()[-1])

    return {
        name: {
            other: round(spent / theirs, 3)
            for other, theirs in seconds.items()
            if same(name, other)
        }
        for name, spent in seconds.items()
        if name.startswith("ours")
    }


def measured(arguments: argparse.Namespace, peers: bool) -> dict[str, Any]:
    """Seconds and ratios of one part."""
    seconds = take_turns(PARTS[arguments.part](arguments, peers), arguments.rounds)
    return {
        "seconds": {name: round(spent, 5) for name, spent in seconds.items()},
        "time_of_ours_relative_to": beside(seconds),
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """One report: the part as it is or compiled, and what was left out and why."""
    peers = importlib.util.find_spec("torchattacks") is not None
    left_out = {} if peers else {"torchattacks": "is not installed"}
    if arguments.part == "autoattack":
        left_out["bfloat16"] = "attacks that compare losses stay in float32"
    report: dict[str, Any] = {
        "command": "python -m benchmarks.speed " + " ".join(sys.argv[1:]),
        "machine": machine(arguments.device),
        **{name: getattr(arguments, name) for name in ("part", "images", "steps", "rounds")},
    }
    try:
        report["compiled" if arguments.compiled else "as_it_is"] = measured(arguments, peers)
    except FAILURES as error:
        if not arguments.compiled:
            raise
        reason = str(error).strip().partition("\n")[0]
        left_out["compiled"] = f"{type(error).__name__}: {reason}"
    return report | {"left_out": left_out}


def main() -> None:
    """Parse, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--root", help="image folder with test/; by default embedded digits")
    parser.add_argument("--weights", help="of a vgg_small: of the network that is attacked, of f_b")
    parser.add_argument("--model", default="resnet_small", help="f_a of EOT, network of training")
    parser.add_argument("--defense", help="of the training step")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="g has 13 by default in the paper")
    parser.add_argument("--epsilon", type=float, default=0.031)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timed_draws", type=int, default=6, help="of EOT")
    parser.add_argument("--attack", nargs="+", choices=list(autoattack.PEERS))
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--compiled", action="store_true", help="through torch.compile")
    parser.add_argument("--output", type=report_file, default="results/benchmarks/speed.json")
    parser.set_defaults(
        radius=0.2, limit=True, dtypes=list(training.DTYPES), peers_keep_parameter_gradients=False
    )
    arguments = parser.parse_args()
    arguments.attack = arguments.attack or list(autoattack.PEERS)
    if arguments.part in ("pgd", "autoattack"):
        arguments.model = "vgg_small"
    write(compare(arguments), arguments.output)


if __name__ == "__main__":
    main()
