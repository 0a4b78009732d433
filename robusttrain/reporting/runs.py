"""What an evaluation left in its folder, read back: results.json, verdicts, examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.evaluation.examples import Examples
from robusttrain.evaluation.outputs import EXAMPLES
from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.evaluation.report import VERDICTS, Figure, Results, read_results
from robusttrain.evaluation.scoring import wilson, worst_case

#: What the worst case over all attacks is called in tables.
WORST = "worst case"
Part = TypeVar("Part")


@dataclass(frozen=True)
class Run:
    """An evaluation's folder.

    Args:
        folder: where it lies.
        results: of results.json.
        records: verdicts of each image; None where they were not kept.
        examples: images that fell, and the attacks' names; None where there are none.
        missing: lines about what is not there, and why it matters.
    """

    folder: Path
    results: Results
    records: Records | None = None
    examples: tuple[Examples, list[str]] | None = None
    missing: tuple[str, ...] = ()

    @property
    def json(self) -> dict[str, Any]:
        """The content of results.json."""
        return dict(self.results.json)

    def score(self, attack: str) -> Tensor:
        """(n,) float64: the share of draws in which each image is right, under an attack, without
        one (`CLEAN`), or in the worst case.
        """
        assert self.records is not None
        if attack != WORST:
            return self.records.of(attack).right
        rows = self.records.rows.values()
        chosen_by = torch.stack([each.chosen_by for each in rows])
        return worst_case(chosen_by, torch.stack([each.right for each in rows]))


def figure_of(score: Tensor) -> Figure:
    """An accuracy with its interval, of scores (n,) in [0, 1]."""
    if not len(score):
        return Figure(None, *wilson(0.0, 0))
    accuracy = min(1.0, float(score.double().mean()))
    return Figure(accuracy, *wilson(accuracy, len(score)))


def read_run(path: str | Path) -> Run:
    """An evaluation's folder, or its results.json.

    Raises:
        UserError: no results there, or results that cannot be read. What lies beside them and
            cannot be used is a line of `Run.missing`.
    """
    results = read_results(path, records=False)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    missing: list[str] = []
    records = _beside(folder / VERDICTS, Records.read, missing)
    if records is not None and not _fits(records, results):
        missing.append(f"{VERDICTS} is of another evaluation than results.json: not shown.")
        records = None
    elif records is None and not (folder / VERDICTS).exists():
        missing.append(
            f"{VERDICTS} is not there, so nothing is said per class: evaluate again without"
            " --save_verdicts false."
        )
    examples = _beside(folder / EXAMPLES, Examples.read, missing)
    if examples is not None and not {*examples[0].index.tolist()} <= {*results.json["indices"]}:
        missing.append(f"{EXAMPLES} is of another evaluation than results.json: not shown.")
        examples = None
    return Run(folder, results, records, examples, tuple(missing))


def _beside(path: Path, read: Callable[[Path], Part], missing: list[str]) -> Part | None:
    if not path.exists():
        return None
    try:
        return read(path)
    except UserError as error:
        missing.append(str(error))
        return None


def _fits(records: Records, results: Results) -> bool:
    return (
        records.index.tolist() == list(results.json["indices"])
        and records.attacks == list(results.attacks)
        and records.of(CLEAN).score.dim() == 2
    )


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """A file from elsewhere may hold anything where a number should be: one line then.

    Raises:
        UserError: instead of what the code inside stumbles over.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is damaged: {error}: evaluate again") from error
