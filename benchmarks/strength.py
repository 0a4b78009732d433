r"""How strong attacks are for what they ask: ours and those of four libraries, query by query.

    python -m benchmarks.strength --root data/cifar10-jpeg --f_b FILE --standard FILE \
        --autoattack CLONE --commit HASH --output docs/results/strength.json --picture strength.png

Every implementation attacks the same images, those that the model gets right, through
`benchmarks.counted.Tally`: a forward pass is a query, a backward pass is another, whoever makes
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

A random model makes of one attack another curve with every seed: with ``--runs`` all attack it
several times, and what is measured is that of all runs together.

Curves are kept in ``--work``, one file for each, and a run that was stopped goes on there. Those of
the peers also go into ``--peers``, a zip that a later run takes with ``--earlier``, so that only
ours are measured anew. Without options the models are the package's own, on digits.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.counted import BudgetSpentError, Counted, Tally
from benchmarks.strength_attacks import contenders
from benchmarks.strength_contender import NAMES, WIDE, Contender
from benchmarks.strength_kept import pack, unpack
from benchmarks.strength_measures import (
    MEASURES,
    compact,
    curves,
    firsts,
    numbers,
    shares,
    table,
)
from benchmarks.strength_models import NAMED, PART, Subject, fingerprint, parts, streams, subjects
from benchmarks.strength_picture import draw
from benchmarks.timing import keep, new_file, report_file
from robusttrain.core.errors import UserError
from robusttrain.core.processor import processor

BUDGETS = [10, 30, 100, 300, 1000]


def measure(
    subject: Subject, contender: Contender, budgets: list[int], radius: float, seed: int = 0
) -> dict[str, Any]:
    """Distances of each image's nearest adversarial point for each budget, and seconds.

    Args:
        subject: the model and its images.
        contender: the attack.
        budgets: queries, ascending.
        radius: within which an image falls.
        seed: of the attack's draws and the model's.

    Returns:
        ``distances[budget]`` has n numbers, None where there was no such point, and ``seconds``.
    """
    images, labels = subject.images, subject.labels
    distances: dict[str, list[float | None]] = {}
    start = time.process_time()
    for budget in budgets if contender.by_budget else [budgets[-1]]:
        tally = Tally(
            *(subject.model, images, labels, WIDE[contender.norm], budget),
            radius=None if contender.nearest else radius,
        )
        model = Counted(tally).eval()
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            adversarial = contender.run(model, images.clone(), labels.clone(), radius, budget)
            with torch.no_grad():
                model(adversarial.detach().float(), streams(len(images)))
        except BudgetSpentError:
            pass
        for each in [budget] if contender.by_budget else budgets:
            distances[str(each)] = [
                round(far, 6) if far < torch.inf else None for far in tally.distances(each)
            ]
    return {"distances": distances, "seconds": round(time.process_time() - start, 1)}


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
    """The report: for each model and norm, all curves. What is in ``--output`` of other models and
    norms stays there.
    """
    budgets, work = sorted(set(arguments.budgets)), Path(arguments.work)
    report: dict[str, Any] = {
        "machine": {"architecture": platform.machine(), **processor()},
        "threads": torch.get_num_threads(),
        "versions": versions(arguments.commit),
        "models": {},
    }
    if Path(arguments.output).is_file():
        before = json.loads(Path(arguments.output).read_text())
        if not isinstance(before.get("models"), dict):
            fix = "holds another benchmark's report: name another file"
            raise UserError(f"--output {arguments.output}: {fix}")
        report["models"] = before["models"]
    for model, subject in subjects(arguments).items():
        for norm in arguments.norms:
            radius = subject.radii[norm]
            rows: dict[Contender, dict[int, list[float]]] = {}
            numbered = [*enumerate(parts(subject))]
            for each in contenders(norm):
                if arguments.only and each.library not in arguments.only:
                    continue
                if each.name in arguments.without:
                    continue
                if arguments.attacks and each.name not in arguments.attacks:
                    continue
                rows[each] = {budget: [] for budget in budgets}
                seconds = 0.0
                runs = [(run, *at) for run in range(arguments.runs) for at in numbered]
                for run, number, part in runs:
                    name = f"{norm}-{each.library}-{each.name}-{number}"
                    file = work / model / (f"{name}-run-{run}.json" if run else f"{name}.json")
                    settings = {
                        "budgets": budgets,
                        "radius": radius,
                        "images": len(part.images),
                        "fingerprint": fingerprint(part),
                    }
                    if run:
                        settings["run"] = run

                    def make(
                        each: Contender = each, part: Subject = part, run: int = run
                    ) -> dict[str, Any]:
                        return measure(part, each, budgets, radius, run)  # noqa: B023

                    kept = measured(file, settings, make)
                    seconds += kept["seconds"]
                    for budget in budgets:
                        rows[each][budget] += numbers(kept["distances"][str(budget)])
                print(model, NAMES[norm], each.title, round(seconds, 1), "s", flush=True)
            report["models"].setdefault(model, {})[norm] = {
                "command": "python -m benchmarks.strength " + " ".join(arguments.command),
                "budgets": budgets,
                "radius": radius,
                "images": len(subject.images),
                **({"runs": arguments.runs} if arguments.runs > 1 else {}),
                **curves(rows, budgets, radius),
            }
    return dict(compact(report))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="folder of the data; none: digits, and the package's models")
    parser.add_argument("--f_b", help="adversarially trained: weights, or a checkpoint of ours")
    parser.add_argument("--f_b_model", default="vgg_small", help="its model preset")
    parser.add_argument("--standard", help="standard model: weights, or a checkpoint of ours")
    parser.add_argument("--standard_model", default="resnet_small", help="its model preset")
    parser.add_argument("--models", nargs="+", choices=NAMED, default=list(NAMED))
    parser.add_argument("--norms", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--only", nargs="+", help="these libraries alone")
    parser.add_argument("--attacks", nargs="+", help="attacks of these names alone")
    parser.add_argument("--without", nargs="+", default=[], help="leave out attacks of these names")
    parser.add_argument("--runs", type=int, default=1, help="of each attack, each with its seed")
    each = f"one for all models, or one each: {', '.join(NAMED)}"
    parser.add_argument("--images", type=int, nargs="+", default=[PART], help=each)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--linf", type=float, nargs="+", default=[0.031], help=f"radius, {each}")
    parser.add_argument("--l2", type=float, nargs="+", default=[0.5], help=f"radius, {each}")
    parser.add_argument("--adv_lib", help="folder in which adv-lib lies, if it is not installed")
    parser.add_argument("--autoattack", help="clone of AutoAttack's repository")
    parser.add_argument("--commit", help="of that clone")
    parser.add_argument("--work", default="results/benchmarks/strength", help="where curves are")
    parser.add_argument(
        "--output",
        type=report_file,
        default="results/benchmarks/strength.json",
        help="what it has of other models and norms stays",
    )
    parser.add_argument(
        "--peers", type=new_file(".zip"), help="zip for the peers' curves, all that are in --work"
    )
    parser.add_argument("--earlier", help="such a zip of an earlier run, to take curves from")
    parser.add_argument("--tables", help="a report: its tables and picture alone are made")
    parser.add_argument("--picture", type=new_file(".png"), help="PNG file of the curves")
    return parser


def reported(path: Path) -> dict[str, Any]:
    """A report of before.

    Raises:
        UserError: it cannot be read.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--tables {path}: cannot be read ({error}): name an --output") from error
    return report


def main(given: list[str] | None = None) -> None:
    """Parse, measure, write."""
    arguments = parser().parse_args(given)
    arguments.command = sys.argv[1:] if given is None else given
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for folder in (arguments.adv_lib, arguments.autoattack):
        if folder:
            sys.path.insert(0, str(Path(folder)))
    if arguments.tables:
        report = reported(Path(arguments.tables))
    else:
        work, there = Path(arguments.work), versions(arguments.commit)
        if arguments.earlier:
            print(unpack(Path(arguments.earlier), work, there), "curves from", arguments.earlier)
        report = compare(arguments)
        if arguments.peers:
            pack(work, there, Path(arguments.peers))
        keep(report, arguments.output)
    print(table(report))
    for measure in MEASURES:
        print(f"\n{firsts(report, measure)}")
        print(f"\noptimality, {measure.replace('_', ' ')}:\n{shares(report, measure)}")
    if arguments.picture:
        draw(report, arguments.picture)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmarks.strength: error: {error}", file=sys.stderr)
        sys.exit(2)
