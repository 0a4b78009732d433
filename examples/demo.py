r"""The end of ``make demo``: one picture of what the attacks did, and three sentences about it.

It reads what two runs of evaluate.py left, on the same images and under the same threat:

    python evaluate.py --attack pgd --defense.radius 0 --save_images true \
                       --output results/demo/without-g
    python evaluate.py --suite bpda --save_images true --output results/demo
    python examples/demo.py results/demo

With radius 0, g returns the image that it is given: the first run attacks f_a alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robusttrain import DefendedClassifier, Rng, UserError, load
from robusttrain.config.build import build
from robusttrain.config.checkpoints import read_recipe
from robusttrain.data import ImageData
from robusttrain.models.defended import MeanPrediction
from robusttrain.reporting import perturbations, png
from robusttrain.storage.weights import read_tensors

#: The attack on f_a alone.
ALONE = "pgd"
#: The one that is made on f_a alone and tried on f_a(g(x)).
TRANSFER = "wt"
#: Those that go around g.
AROUND = ("bpda-i", "bpda-eot")
#: Images in the picture.
ROWS = 4


@dataclass(frozen=True)
class Share:
    """A share of the images that are classified correctly, with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Share:
        """A figure of results.json."""
        value = row["accuracy"] if "accuracy" in row else row["robust_accuracy"]
        return cls(value, *row["ci95"])

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} %"

    def against(self, other: Share) -> str:
        """More or fewer than the other, if neither lies in the other's interval."""
        if other.low <= self.value <= other.high or self.low <= other.value <= self.high:
            return "about as many"
        return "more" if self.value > other.value else "fewer"


def read(folder: Path, *attacks: str) -> dict[str, Any]:
    """The results.json in a folder.

    Raises:
        UserError: there is none, it lacks one of these attacks, or they saw different images.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; evaluate.py --output {folder} writes it")
    content: dict[str, Any] = json.loads(path.read_text())
    if content["survivors"]:
        raise UserError(f"{path}: its attacks saw different images: give --survivors false")
    for name in attacks:
        if name not in content["attacks"]:
            raise UserError(f"{path}: has no attack {name}: give evaluate.py --attack {name}")
    return content


def sentences(alone: Mapping[str, Any], defended: Mapping[str, Any]) -> list[str]:
    """Three sentences: f_a alone, what g seems to add, and what is left of that.

    Every comparison is made here, of the figures at hand: none is known beforehand.

    Args:
        alone: results.json of f_a without g.
        defended: that of f_a(g(x)).

    Raises:
        UserError: they are not of the same model, threat and images.
    """
    for key in ("weights", "threat", "images", "seed"):
        if alone[key] != defended[key]:
            both = f"{alone[key]} without g, {defended[key]} with it"
            raise UserError(f"the two evaluations differ: {key} is {both}")
    bare, pgd = Share.of(alone["clean"]), Share.of(alone["attacks"][ALONE])
    clean, transfer = Share.of(defended["clean"]), Share.of(defended["attacks"][TRANSFER])
    around = {name: Share.of(defended["attacks"][name]) for name in AROUND}
    strongest = min(around.values(), key=lambda each: each.value)
    worst = Share.of(defended["worst_case"])

    seems = {
        "more": "more than without g, so g looks like a protection",
        "about as many": "about as many as without g, so g does not even look like a protection",
        "fewer": "fewer than without g, so g makes f_a weaker",
    }[transfer.against(pgd)]
    took = {
        "more": f"more than {TRANSFER}, so they are not at their best here",
        "about as many": f"about as many as {TRANSFER}",
        "fewer": f"fewer than {TRANSFER}",
    }[strongest.against(transfer)]
    worth = {
        "more": f"against these attacks, g is worth {points(worst, pgd)} points",
        "about as many": "g is worth nothing that so many images could show",
        "fewer": "g makes f_a weaker",
    }[worst.against(pgd)]
    if worst.against(pgd) == "more" and worst.against(transfer) == "fewer":
        worth += f", not {points(transfer, pgd)}"
    attack = f"an attack that knows f_a alone ({TRANSFER})"
    left = " and ".join(f"{each} ({name})" for name, each in around.items())
    in_all = f"the worst case of each image leaves {worst}"
    if worst.value > strongest.value:
        in_all += ", as it is chosen on other draws than it is scored on"
    return [
        f"Without g, f_a is right on {bare} of the images, on {pgd} once PGD has changed them.",
        f"With g, it is right on {clean}, on {transfer} after {attack}: {seems}.",
        f"Attacks that go around g leave {left}, {took}; {in_all}: {worth}.",
    ]


def points(larger: Share, smaller: Share) -> str:
    """The difference of two shares, in percentage points."""
    return f"{100 * (larger.value - smaller.value):.1f}"


def picture(alone: Path, defended: Path) -> bytes:
    """The first images, what attacks made of them, and what the attacked model says, as a PNG.

    A random model says what the mean of ten draws says.

    Args:
        alone: folder of the evaluation of f_a without g.
        defended: that of f_a(g(x)).
    """
    results = read(defended)
    checkpoint = results["plan"]["checkpoint"]
    model = load(checkpoint)
    bare = DefendedClassifier(None, model.classifier)
    attacked = {f"{ALONE}, without g": (bare, alone / f"{ALONE}.safetensors")}
    for name in (TRANSFER, *AROUND):
        attacked[name] = (model, defended / f"{name}.safetensors")

    data: ImageData = build(read_recipe(checkpoint)["data"], "data", kind=ImageData)
    data.prepare_data()
    data.setup("test")
    adversarial, said = {}, {}
    for name, (target, path) in attacked.items():
        tensors = read_tensors(path)
        batch = data.test_images(tensors["index"][:ROWS])
        adversarial[name] = tensors["images"][:ROWS]
        rng = Rng.for_images(results["seed"], batch.indices).fold("demo")
        with torch.no_grad():
            answers = MeanPrediction(target, draws=10)(adversarial[name], rng).argmax(dim=1)
        said[name] = [data.class_names[answer] for answer in answers.tolist()]
    labels = [data.class_names[label] for label in batch.labels.tolist()]
    return png(perturbations(batch.images, adversarial, labels, said))


def main(arguments: list[str] | None = None) -> None:
    """Write demo.png into the folder of an evaluation, and print three sentences."""
    parser = argparse.ArgumentParser(description="A picture and three sentences of an evaluation.")
    parser.add_argument("folder", type=Path, help="--output of the evaluation of f_a(g(x))")
    parser.add_argument("--without_g", type=Path, help="that of f_a; default: FOLDER/without-g")
    given = parser.parse_args(arguments)
    alone = given.without_g or given.folder / "without-g"
    # For so few images threads would do nothing but wait for each other.
    torch.set_num_threads(1)
    try:
        lines = sentences(read(alone, ALONE), read(given.folder, TRANSFER, *AROUND))
        drawn = picture(alone, given.folder)
    except UserError as error:
        sys.exit(f"demo.py: error: {error}")
    (given.folder / "demo.png").write_bytes(drawn)
    print(f"picture: {given.folder / 'demo.png'}", *lines, sep="\n")


if __name__ == "__main__":
    main()
