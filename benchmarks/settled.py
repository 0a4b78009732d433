r"""What it saves that images leave an attack as soon as their verdict is settled.

    OMP_NUM_THREADS=1 python -m benchmarks.settled --root data/cifar10-jpeg --weights FILE \
        --autoattack FOLDER --commit HASH --output settled.json

On one thread, one process and the same images:

- PGD with many steps, as the evaluation runs it (clean images, attack, verdicts), with images
  leaving and without, beside its dense limit: for every step and image one forward pass and one
  backward pass of the same fast copy, and nothing else.
- The suite ``autoattack`` beside AutoAttack's own code: a clone of its public repository in FOLDER;
  with ``--bfloat16 apgd-ce apgd-t`` once more with gradients of those attacks in bfloat16.

Times are seconds of the processor that the process itself has used, so what else runs on the
machine hardly shows. Verdicts are compared image by image.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import load_images, network, parser_of, report_file, write
from robusttrain import fast_copy
from robusttrain.attacks import Linf, ProjectedGradient, Target
from robusttrain.config.attacks import attack_nodes, scenario
from robusttrain.core.allocator import keep_freed_memory
from robusttrain.core.processor import processor
from robusttrain.evaluation.engine import Engine, Entry
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scenario import Scenario

#: Our attacks, and AutoAttack's own of the same budget.
THEIRS = {"apgd-ce": "apgd-ce", "apgd-t": "apgd-t", "fab-t": "fab-t", "square": "square"}


class Timed(Engine):
    """An engine that notes how much time of the processor each attack takes, verdicts included."""

    spent: dict[str, float]

    def _attack(self, name: str, *arguments: Any) -> Entry:
        start = time.process_time()
        entry = super()._attack(name, *arguments)
        self.spent[name] = time.process_time() - start
        return entry


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def limit(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """``steps`` times one forward and one input-gradient pass."""
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        torch.autograd.grad(loss, images)


def stands(records: Records, name: str) -> Tensor:
    """(n,) bool: which images were right under an attack and all before it."""
    names = ["clean", *records.attacks]
    upto = names[: names.index(name) + 1]
    return torch.stack([records.of(each).score[:, 0] for each in upto]).all(dim=0)


def pgd(model: nn.Module, images: Tensor, labels: Tensor, arguments: Any) -> dict[str, Any]:
    """PGD with images leaving and without, against its limit."""
    attack = ProjectedGradient(
        steps=arguments.steps, relative_step_size=0.1, threat=Linf(arguments.epsilon)
    )
    indices = torch.arange(len(images))
    copy = fast_copy(model, torch.float32)
    spent: dict[str, list[float]] = {"leaving": [], "dense": [], "limit": []}
    verdicts, gradients = {}, {}
    for _ in range(arguments.rounds):
        for way in ("leaving", "dense"):
            engine = Engine(
                model, {"pgd": Scenario(attack, Target())}, leave_early=way == "leaving"
            )
            seconds, (records, _) = clock(lambda: engine.run(images, labels, indices))  # noqa: B023
            spent[way].append(seconds)
            verdicts[way] = stands(records, "pgd")
            gradients[way] = float(records.of("pgd").gradients.sum() / len(images))
        seconds, _ = clock(lambda: limit(copy, images, labels, arguments.steps))
        spent["limit"].append(seconds)
    right = int(records.of("clean").score.sum())
    least = {way: min(times) for way, times in spent.items()}
    return {
        "steps": arguments.steps,
        "clean": round(right / len(images), 4),
        "robust": round(verdicts["leaving"].double().mean().item(), 4),
        "verdicts_that_differ": int((verdicts["leaving"] != verdicts["dense"]).sum()),
        "gradients_per_image": {way: round(count, 1) for way, count in gradients.items()},
        "time_relative_to_limit": {
            way: round(least[way] / least["limit"], 3) for way in ("leaving", "dense")
        },
        # The limit of the images alone that are right to begin with
        "time_relative_to_limit_of_right_images": {
            way: round(least[way] / least["limit"] * len(images) / right, 3)
            for way in ("leaving", "dense")
        },
    }


def ours(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    leave_early: bool,
    short: Sequence[str] = (),
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Seconds of each attack of ours and of all, and who stands after each; those in ``short``
    differentiate in bfloat16.
    """
    nodes = attack_nodes([*THEIRS], [], epsilon)
    scenarios = {name: scenario(node, name) for name, node in nodes.items()}
    types = {name: torch.bfloat16 if name in short else torch.float32 for name in THEIRS}
    engine = Timed(model, scenarios, precision=types, survivors=True, leave_early=leave_early)
    engine.spent = {}
    seconds, (records, _) = clock(lambda: engine.run(images, labels, torch.arange(len(images))))
    return {**engine.spent, "all": seconds}, {name: stands(records, name) for name in THEIRS}


def theirs(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float
) -> tuple[dict[str, float], Tensor]:
    """Seconds of each attack of AutoAttack's own code and of all, and who stands in the end."""
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    attack = AutoAttack(model, norm="Linf", eps=epsilon, seed=0, device="cpu", verbose=False)
    spent: dict[str, float] = {}

    def timed(name: str, part: Any) -> None:
        perturb = part.perturb

        def run(*given: Any, **named: Any) -> Any:
            seconds, result = clock(lambda: perturb(*given, **named))
            spent[name] = spent.get(name, 0.0) + seconds
            return result

        part.perturb = run

    timed("apgd-ce", attack.apgd)
    timed("apgd-t", attack.apgd_targeted)
    timed("fab-t", attack.fab)
    timed("square", attack.square)
    seconds, adversarial = clock(
        lambda: attack.run_standard_evaluation(images, labels, bs=len(images))
    )
    with torch.no_grad():
        standing = model(adversarial).argmax(dim=1) == labels
    return {**spent, "all": seconds}, standing


def beside(model: nn.Module, images: Tensor, labels: Tensor, arguments: Any) -> dict[str, Any]:
    """The suite, with images leaving and without, beside AutoAttack's own code."""
    spent, standing = {}, {}
    spent["leaving"], after = ours(model, images, labels, arguments.epsilon, True)
    spent["theirs"], standing["theirs"] = theirs(model, images, labels, arguments.epsilon)
    standing["leaving"] = after["square"]
    result: dict[str, Any] = {
        "commit": arguments.commit,
        "stand_after": {name: int(left.sum()) for name, left in after.items()},
        "stand_in_the_end_theirs": int(standing["theirs"].sum()),
        "fell_to_ours_alone": int((standing["theirs"] & ~standing["leaving"]).sum()),
        "fell_to_theirs_alone": int((standing["leaving"] & ~standing["theirs"]).sum()),
    }
    if arguments.dense:
        spent["dense"], dense = ours(model, images, labels, arguments.epsilon, False)
        result["verdicts_that_differ_from_dense"] = {
            name: int((after[name] != dense[name]).sum()) for name in after
        }
    if short := arguments.bfloat16:
        spent["bfloat16"], rounded = ours(model, images, labels, arguments.epsilon, True, short)
        result["bfloat16"] = {
            "attacks": short,
            "stand_after": {name: int(left.sum()) for name, left in rounded.items()},
            "verdicts_that_differ": {
                name: int((after[name] != rounded[name]).sum()) for name in after
            },
        }
    result["seconds"] = {
        way: {name: round(seconds, 1) for name, seconds in times.items()}
        for way, times in spent.items()
    }
    result["time_relative_to_theirs"] = {
        way: {
            name: round(seconds / spent["theirs"][name], 3)
            for name, seconds in times.items()
            if spent["theirs"].get(name)
        }
        for way, times in spent.items()
        if way != "theirs"
    }
    return result


def main() -> None:
    """Parse, measure, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of PGD")
    parser.add_argument("--rounds", type=int, default=3, help="of PGD; the least time counts")
    parser.add_argument("--autoattack", help="clone of AutoAttack's repository; none: PGD alone")
    parser.add_argument("--commit", help="of that clone")
    parser.add_argument("--dense", action="store_true", help="the suite without leaving, too")
    parser.add_argument(
        "--bfloat16", nargs="*", default=[], choices=THEIRS, help="the suite again, these rounded"
    )
    parser.add_argument("--output", type=report_file, default="results/benchmarks/settled.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    data, images, labels = load_images(arguments.root, arguments.images)
    model = network(arguments.model, arguments.weights, data).requires_grad_(False)
    report: dict[str, Any] = {
        "command": "python -m benchmarks.settled " + " ".join(sys.argv[1:]),
        "machine": {"architecture": platform.machine(), **processor()},
        "model": arguments.model,
        "images": len(images),
        "epsilon": arguments.epsilon,
        "threads": torch.get_num_threads(),
        "pgd": pgd(model, images, labels, arguments) if arguments.rounds else None,
    }
    if arguments.autoattack:
        sys.path.insert(0, str(Path(arguments.autoattack)))
        report["autoattack"] = beside(model, images, labels, arguments)
    write(report, arguments.output)


if __name__ == "__main__":
    main()
