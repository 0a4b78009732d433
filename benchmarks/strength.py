r"""How strong attacks are for what they ask: ours and those of four libraries, query by query.

    python -m benchmarks.strength --root data/cifar10-jpeg --f_b FILE --standard FILE \
        --autoattack CLONE --commit HASH --output docs/results/strength.json --picture strength.png

Every implementation attacks the same images, those that the model gets right, through
`benchmarks.counted.Counted`: a forward pass is a query, a backward pass is another, whoever makes
it. Two curves over the queries that an image was given:

- robust accuracy: the share of the images without an adversarial point within the radius so far;
- the median distance of the nearest adversarial point so far, of attacks that look for it.

An attack whose steps do not depend on their number runs once; any other runs anew for each budget.
What an attack returns is asked about, too, where a query is left.

The best of all is, image by image, whatever any of them found. *Optimality* is the share of its
area that one implementation reaches (as in Cina et al. 2025, "AttackBench: evaluating
gradient-based attacks for adversarial examples", section 3, where the best of all attacks is the
lower envelope of the curves, and the area lies above them):

    robust accuracy:  integral (1 - a(q)) d log q / integral (1 - a*(q)) d log q
    distance:         sum_i max(0, e - d_i) / sum_i (e - d*_i),  e = max_i d*_i, at the last budget

Symbols: q queries, a robust accuracy, d_i the distance of image i, * the best of all. The second
is the area above the curve of robust accuracy over the radius, up to the radius e at which the best
of all has left nothing.

Curves are kept in ``--work``, one file for each, and a run that was stopped goes on there. Without
options the models are the package's own, on digits.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import robusttrain
from benchmarks.counted import BudgetSpentError, Counted
from benchmarks.strength_attacks import NAMES, WIDE, Contender, contenders
from benchmarks.strength_picture import draw
from benchmarks.timing import load_images, network, right_for_all, write
from robusttrain import Rng
from robusttrain.core.processor import processor
from robusttrain.data import Digits
from robusttrain.defenses import RandomResizePad
from robusttrain.models.defended import DefendedClassifier

BUDGETS = [10, 20, 50, 100, 200, 500, 1000]
#: Within so much of the first: points of accuracy, or a share of the distance.
NEAR = 0.01


@dataclass(frozen=True)
class Subject:
    """A model under attack, with the images (n, C, H, W) that it gets right and labels (n,)."""

    model: DefendedClassifier
    images: Tensor
    labels: Tensor


def subjects(arguments: argparse.Namespace) -> dict[str, Subject]:
    """The three models: adversarially trained, standard, and the first behind randomization."""
    count = 4 * max(arguments.images)
    if arguments.root:
        data, images, labels = load_images(arguments.root, count)
        trained = {
            "f_b": network(arguments.f_b_model, arguments.f_b, data),
            "standard": network(arguments.standard_model, arguments.standard, data),
        }
    else:
        digits = Digits(batch_size=count)
        digits.limit_test(count, seed=0)
        digits.setup("test")
        batch = digits.on_after_batch_transfer(next(iter(digits.test_dataloader())), 0)
        images, labels = batch.images.contiguous(), batch.labels
        trained = {
            "f_b": robusttrain.load("digits-adversarial"),
            "standard": robusttrain.load("digits-standard"),
        }
    size = images.shape[-1]
    models = {name: DefendedClassifier.of(model.eval()) for name, model in trained.items()}
    layers = RandomResizePad(low=size * 7 // 8, canvas=size)
    models["randomized"] = DefendedClassifier(layers, trained["f_b"])
    chosen = {}
    few = arguments.images if len(arguments.images) > 1 else arguments.images * len(models)
    for name, wanted in zip(arguments.models, few, strict=False):
        model = models[name].requires_grad_(False)
        torch.manual_seed(0)
        right = right_for_all([model, model, model], images, labels, wanted)
        chosen[name] = Subject(model.fast(), *right)
    return chosen


def measure(
    subject: Subject, contender: Contender, budgets: list[int], radius: float
) -> dict[str, Any]:
    """Distances of each image's nearest adversarial point for each budget, and seconds.

    Returns:
        ``distances[budget]`` has n numbers, None where there was no such point, and ``seconds``.
    """
    images, labels = subject.images, subject.labels
    distances: dict[str, list[float | None]] = {}
    start = time.process_time()
    for budget in budgets if contender.by_budget else [budgets[-1]]:
        model = Counted(
            *(subject.model, images, labels, WIDE[contender.norm], budget),
            radius=None if contender.nearest else radius,
        ).eval()
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            adversarial = contender.run(model, images.clone(), labels.clone(), radius, budget)
            with torch.no_grad():
                model(adversarial.detach().float(), streams(len(images)))
        except BudgetSpentError:
            pass
        for each in [budget] if contender.by_budget else budgets:
            distances[str(each)] = [
                round(far, 6) if far < torch.inf else None for far in model.distances(each)
            ]
    return {"distances": distances, "seconds": round(time.process_time() - start, 1)}


def streams(count: int) -> Rng:
    """Streams of the draw that judges what attacks returned."""
    return Rng.for_images(2, torch.arange(count))


def measured(
    work: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What is kept in a file with the same settings, else measured and kept."""
    if work.is_file():
        kept: dict[str, Any] = json.loads(work.read_text())
        if kept["settings"] == settings:
            return kept
    result = {"settings": settings, **make()}
    work.parent.mkdir(parents=True, exist_ok=True)
    work.write_text(json.dumps(result))
    return result


def numbers(row: list[float | None]) -> list[float]:
    """Distances, infinite where there is none."""
    return [float("inf") if far is None else far for far in row]


def accuracy(distances: list[float], radius: float) -> float:
    """Share of images without an adversarial point within the radius."""
    return sum(far > radius * (1 + 1e-4) + 1e-5 for far in distances) / len(distances)


def area(accuracies: list[float], budgets: list[int]) -> float:
    """Integral of 1 - accuracy over the logarithm of queries; of one budget, 1 - accuracy."""
    fell = [1 - each for each in accuracies]
    if len(fell) == 1:
        return fell[0]
    return float(np.trapezoid(fell, np.log(budgets)))


def optimality_of_distances(distances: list[float], best: list[float]) -> float:
    """Share of the area above the best of all's curve of robust accuracy over the radius."""
    reached = [far for far in best if far < float("inf")]
    if not reached:
        return 1.0
    end = max(reached)
    whole = sum(end - far for far in reached)
    return sum(max(0.0, end - far) for far in distances) / whole if whole else 1.0


def curves(
    rows: dict[Contender, dict[int, list[float]]], budgets: list[int], radius: float
) -> dict[str, Any]:
    """Both measures of one model and norm: values for each budget, optimality, and who is first."""
    best = {
        budget: [min(far) for far in zip(*(row[budget] for row in rows.values()), strict=True)]
        for budget in budgets
    }
    robust = {
        each.title: [accuracy(row[budget], radius) for budget in budgets]
        for each, row in rows.items()
    }
    envelope = [accuracy(best[budget], radius) for budget in budgets]
    whole = area(envelope, budgets)
    seeking = {each: row for each, row in rows.items() if each.nearest}
    nearest = {
        each.title: [statistics.median(row[budget]) for budget in budgets]
        for each, row in seeking.items()
    }
    last = {
        budget: [min(far) for far in zip(*(row[budget] for row in seeking.values()), strict=True)]
        for budget in budgets
    }
    return {
        "robust_accuracy": {
            "curves": robust,
            "best_of_all": envelope,
            "optimality": {
                name: area(row, budgets) / whole if whole else 1.0 for name, row in robust.items()
            },
            "first": [first(robust, place, absolute=True) for place in range(len(budgets))],
        },
        "median_distance": {
            "curves": nearest,
            "best_of_all": [statistics.median(last[budget]) for budget in budgets],
            "optimality": {
                each.title: optimality_of_distances(row[budgets[-1]], last[budgets[-1]])
                for each, row in seeking.items()
            },
            "first": [first(nearest, place, absolute=False) for place in range(len(budgets))],
        },
    }


def first(rows: dict[str, list[float]], place: int, absolute: bool) -> dict[str, Any]:
    """Our best and the peers' best at one budget, and whether ours is first or within `NEAR`."""
    at = {name: row[place] for name, row in rows.items()}
    mine = {name: value for name, value in at.items() if name.endswith("(ours)")}
    theirs = {name: value for name, value in at.items() if name not in mine}
    ours = min(mine, key=lambda name: mine[name])
    peer = min(theirs, key=lambda name: theirs[name]) if theirs else None
    limit = float("inf")
    if peer is not None:
        limit = theirs[peer] + NEAR if absolute else theirs[peer] * (1 + NEAR)
    return {
        "ours": ours,
        "value": mine[ours],
        "peer": peer,
        "peers_value": None if peer is None else theirs[peer],
        "within_1_percent": mine[ours] <= limit + 1e-9,
    }


def compact(value: Any) -> Any:
    """Numbers to four digits; what is infinite is None."""
    if isinstance(value, dict):
        return {key: compact(each) for key, each in value.items()}
    if isinstance(value, list):
        return [compact(each) for each in value]
    if isinstance(value, float):
        return round(value, 4) if abs(value) < float("inf") else None
    return value


def versions(commit: str | None) -> dict[str, str | None]:
    """Versions of the peers, and the commit of AutoAttack's clone."""
    there: dict[str, str | None] = {"autoattack": commit}
    for name in ("torchattacks", "foolbox", "adv-lib", "torch"):
        try:
            there[name] = version(name)
        except PackageNotFoundError:
            there[name] = None
    return there


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report: for each model and norm, all curves."""
    budgets, work = sorted(set(arguments.budgets)), Path(arguments.work)
    radii = {"linf": arguments.linf, "l2": arguments.l2}
    report: dict[str, Any] = {
        "command": "python -m benchmarks.strength " + " ".join(arguments.command),
        "machine": {"architecture": platform.machine(), **processor()},
        "threads": torch.get_num_threads(),
        "versions": versions(arguments.commit),
        "budgets": budgets,
        "radius": radii,
        "images": {},
        "models": {},
    }
    for model, subject in subjects(arguments).items():
        report["images"][model] = len(subject.images)
        for norm in arguments.norms:
            settings = {
                "budgets": budgets,
                "radius": radii[norm],
                "images": len(subject.images),
                "root": bool(arguments.root),
            }
            rows = {}
            for each in contenders(norm):
                if arguments.only and each.library not in arguments.only:
                    continue
                file = work / model / f"{norm}-{each.library}-{each.name}.json"

                def make(each: Contender = each, norm: str = norm) -> dict[str, Any]:
                    return measure(subject, each, budgets, radii[norm])  # noqa: B023

                kept = measured(file, settings, make)
                print(model, NAMES[norm], each.title, kept["seconds"], "s", flush=True)
                rows[each] = {budget: numbers(kept["distances"][str(budget)]) for budget in budgets}
            report["models"].setdefault(model, {})[norm] = curves(rows, budgets, radii[norm])
    return dict(compact(report))


def table(report: dict[str, Any]) -> str:
    """Who is first, budget by budget."""
    lines = []
    for model, norms in report["models"].items():
        for norm, measures in norms.items():
            for measure_name, part in measures.items():
                lines.append(f"{model}, {NAMES[norm]}, {measure_name.replace('_', ' ')}:")
                for budget, row in zip(report["budgets"], part["first"], strict=True):
                    verdict = "yes" if row["within_1_percent"] else "NO"
                    lines.append(
                        f"  {budget:5d}  {row['ours']} {row['value']}   {row['peer']}"
                        f" {row['peers_value']}   {verdict}"
                    )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="folder of the data; none: digits, and the package's models")
    parser.add_argument("--f_b", help="weights of the adversarially trained model")
    parser.add_argument("--f_b_model", default="vgg_small", help="its model preset")
    parser.add_argument("--standard", help="weights of the standard model")
    parser.add_argument("--standard_model", default="resnet_small", help="its model preset")
    names = ("f_b", "standard", "randomized")
    parser.add_argument("--models", nargs="+", choices=names, default=list(names))
    parser.add_argument("--norms", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--only", nargs="+", help="these libraries alone")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[20], help="of all models, or of each"
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--linf", type=float, default=0.031, help="radius")
    parser.add_argument("--l2", type=float, default=0.5, help="radius")
    parser.add_argument("--adv_lib", help="folder in which adv-lib lies, if it is not installed")
    parser.add_argument("--autoattack", help="clone of AutoAttack's repository")
    parser.add_argument("--commit", help="of that clone")
    parser.add_argument("--work", default="results/benchmarks/strength", help="where curves are")
    parser.add_argument("--output", default="results/benchmarks/strength.json")
    parser.add_argument("--picture", help="PNG file of the curves")
    return parser


def main(given: list[str] | None = None) -> None:
    """Parse, measure, write."""
    arguments = parser().parse_args(given)
    arguments.command = sys.argv[1:] if given is None else given
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for folder in (arguments.adv_lib, arguments.autoattack):
        if folder:
            sys.path.insert(0, str(Path(folder)))
    report = compare(arguments)
    write(report, arguments.output)
    print(table(report))
    if arguments.picture:
        draw(report, arguments.picture)


if __name__ == "__main__":
    main()
