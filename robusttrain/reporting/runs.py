"""What an evaluation left in its folder, read back: results.json, verdicts, examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from robusttrain.core.errors import UserError, first_line
from robusttrain.evaluation.beside import (
    BARE,
    KNOWN_DRAW,
    TRANSFERRED,
    added,
    with_transferred,
)
from robusttrain.evaluation.certification import Certified
from robusttrain.evaluation.curve import file_name, given
from robusttrain.evaluation.examples import Examples
from robusttrain.evaluation.outputs import CERTIFIED, EXAMPLES
from robusttrain.evaluation.randomness import randomness
from robusttrain.evaluation.records import CLEAN, Records, Rows
from robusttrain.evaluation.report import VERDICTS, Figure, Results, read_results
from robusttrain.evaluation.results import alike, figures
from robusttrain.storage.journal import FINISHED

#: What code stumbles over where a file holds something else than it should.
STUMBLES = (*(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),)
#: What the worst case over all attacks is called in tables.
WORST = "worst case"
#: By how much a change may exceed epsilon: what the engine allows, and what results.json rounds.
ROUNDING = 2e-6
#: What results.json says of an attack besides its accuracy, and what may be rounded off.
STATED = {
    "success_rate": 1e-5,
    "success_rate_of": 0.0,
    "largest_perturbation": 1e-5,
    "gradient_evaluations_per_image": 1e-3,
    "queries_per_image": 1e-3,
}
#: The same of what results of earlier versions do not have.
STATED_SINCE = {"median_perturbation": 1e-5}
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
        return self.records.worst


def read_run(path: str | Path) -> Run:
    """An evaluation's folder, or its results.json.

    Raises:
        UserError: no results there, or results that cannot be read. What lies beside them and
            cannot be used is a line of `Run.missing`.
    """
    results = read_results(path, records=False)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    missing: list[str] = []
    with damaged(folder / "results.json"):
        records = _beside(folder / VERDICTS, Records.read, missing)
        if records is not None and not _fits(Run(folder, results, records)):
            missing.append(
                f"{VERDICTS} does not give the figures of results.json: one of them is of another"
                " evaluation, or was changed. Nothing of the verdicts is shown, and the figures are"
                " not to be trusted: evaluate again."
            )
            records = None
        elif records is not None and (unnamed := _unnamed(Run(folder, results, records))):
            missing.append(unnamed)
            records = None
        elif records is None and not (folder / VERDICTS).exists():
            missing.append(
                f"{VERDICTS} is not there, so nothing is said per class: evaluate again without"
                " --save_verdicts false."
            )
        missing += [
            f"attack {name}: its largest change in results.json is {size:.6g}, and epsilon"
            f" {results.json['threat']['epsilon']:.6g}. No evaluation scores what leaves its"
            " threat, so one of them was changed: the figures are not to be trusted, evaluate"
            " again."
            for name, size in outside(results).items()
        ]
        if records is not None:
            results = _besides_checked(Run(folder, results, records), missing)
        if _begun_since(folder):
            missing.append(
                f"{folder / 'journal'} is of an evaluation that began after results.json was"
                " written and has not ended: all that is shown here is of the one before it."
            )
        examples = _beside(folder / EXAMPLES, Examples.read, missing)
        if examples is not None and not _shows(examples[0], results.json, records):
            missing.append(f"{EXAMPLES} is of another evaluation than results.json: not shown.")
            examples = None
    return Run(folder, results, records, examples, tuple(missing))


def _begun_since(folder: Path) -> bool:
    """Whether another evaluation began in a folder since its results were written."""
    begun = folder / "journal" / "fingerprint.json"
    if not begun.is_file() or (begun.parent / FINISHED).exists():
        return False
    return begun.stat().st_mtime > (folder / "results.json").stat().st_mtime


def _beside(path: Path, read: Callable[[Path], Part], missing: list[str]) -> Part | None:
    if not path.exists():
        return None
    try:
        with damaged(path):
            return read(path)
    except UserError as error:
        missing.append(str(error))
        return None


def _fits(run: Run) -> bool:
    """Whether verdicts are whole, of the images and attacks of results.json, and give its figures:
    they may be of another run.
    """
    records, results = run.records, run.results
    if records is None or CLEAN not in records.rows or records.attacks != [*results.attacks]:
        return False
    count = len(records)
    for rows in records.rows.values():
        columns = {name: values for name, values in rows.columns().items() if values is not None}
        tables = [columns.pop("score"), columns.pop("select")]
        if not (
            torch.equal(rows.index, records.index)
            and torch.equal(rows.label, records.label)
            and all(values.shape == (count,) for values in columns.values())
            and all(each.dtype == torch.bool and each.shape[:-1] == (count,) for each in tables)
            and all(each.shape[1] for each in tables)
        ):
            return False
    return (
        records.index.tolist() == [*results.json["indices"]]
        and results.json["images"] == count
        and all(_within(results.json["threat"], row.preset) for row in results.attacks.values())
        and results.json["draws"] == records.of(CLEAN).score.shape[1]
        # What always answers the same has one draw.
        and (results.json["random"] or results.json["draws"] == 1)
        and _inside(run)
        and all(
            _described(row, records.of(name), records, results.json["survivors"])
            for name, row in results.json["attacks"].items()
        )
        and all(_same(shown, Figure.over(score)) for shown, score in _figures(run))
    )


def _unnamed(run: Run) -> str:
    """A line where results.json does not name the classes of the labels; empty where it does, or
    where an earlier version wrote it, which named none.
    """
    assert run.records is not None
    label, names = run.records.label, run.json.get("classes")
    if not len(label):
        return ""
    low, high = int(label.min()), int(label.max())
    if low >= 0 and (names is None or (isinstance(names, list) and high < len(names))):
        return ""
    count = f"{len(names)} classes" if isinstance(names, list) else "no list of classes"
    return (
        f"{VERDICTS} has labels from {low} to {high}, and results.json has {count}: one of them is"
        " of another evaluation, or was changed. Nothing of the verdicts is shown, and the figures"
        " are not to be trusted: evaluate again."
    )


def _shows(examples: Examples, content: Mapping[str, Any], records: Records | None) -> bool:
    """Whether images that fell are of an evaluation: its images, with their classes."""
    places = {index: place for place, index in enumerate(content["indices"])}
    if not {*examples.index.tolist()} <= places.keys():
        return False
    if records is None:
        return True
    here = torch.tensor([places[index] for index in examples.index.tolist()], dtype=torch.int64)
    return bool(examples.label.tolist() == records.label[here].tolist())


def _described(stated: Mapping[str, Any], rows: Rows, records: Records, survivors: bool) -> bool:
    """Whether what results.json says of an attack besides its accuracy is what its verdicts give:
    its success, its cost, and how far images went.
    """
    found = figures(rows, records.of(CLEAN), survivors)
    names = STATED | {name: within for name, within in STATED_SINCE.items() if name in stated}
    return all(_near(stated[name], found[name], within) for name, within in names.items())


def _near(stated: Any, found: Any, within: float) -> bool:
    """Whether a number is the same, up to what is rounded off; or both are none."""
    if stated is None or found is None:
        return stated is found
    return math.isclose(stated, found, rel_tol=1e-5, abs_tol=within)


def _besides_checked(run: Run, missing: list[str]) -> Results:
    """The results without what the verdicts beside them do not give: what a defense adds, what the
    attacker knows of the randomness, curves, certificates.
    """
    assert run.records is not None
    content, records = run.json, run.records
    kept: dict[str, Records] = {}
    for name in (BARE, KNOWN_DRAW):
        file = run.folder / f"{name}-{VERDICTS}"
        found = _beside(file, Records.read, missing) if content.get(name) else None
        if found is not None:
            kept[name] = found
    wrong = [name for name in kept if not _gives(kept[name], content[name], records)]
    if BARE in kept and BARE not in wrong and _added(kept[BARE], content, records):
        wrong.append(BARE)
    stated = (content.get(BARE) or {}).get(TRANSFERRED)
    file = run.folder / f"{TRANSFERRED}-{VERDICTS}"
    handed = _beside(file, Records.read, missing) if stated else None
    there = handed is not None and BARE in kept and BARE not in wrong
    if there and not _transfer_given(handed, kept[BARE], content, records):
        wrong.append(BARE)
    rows = randomness(
        content, records, _tries(content), None if KNOWN_DRAW in wrong else kept.get(KNOWN_DRAW)
    )
    stated = content.get("randomness")
    if rows is not None and stated and not alike(rows, {name: stated.get(name) for name in rows}):
        wrong.append("randomness")
    if not _certificates_given(run, missing):
        wrong.append("certificates")
    curves = dict(content.get("curves") or {})
    bent = [kind for kind, rows in curves.items() if not _curve_given(run, kind, rows, missing)]
    missing += [
        f"{name} in results.json is not what the verdicts give: one of them is of another"
        " evaluation, or was changed. It is not shown: evaluate again."
        for name in (*wrong, *(f"the curve over {kind}" for kind in bent))
    ]
    content |= dict.fromkeys(wrong)  # None, as where nobody asked
    if bent:
        content["curves"] = {kind: rows for kind, rows in curves.items() if kind not in bent}
    if KNOWN_DRAW in wrong and content.get("randomness"):
        content["randomness"] = {
            key: row for key, row in content["randomness"].items() if key != "known"
        }
    return replace(run.results, json=content) if wrong or bent else run.results


def _curve_given(run: Run, kind: str, rows: Any, missing: list[str]) -> bool:
    """Whether a curve is what its verdicts give; yes where there are none."""
    kept = _beside(run.folder / f"{file_name(kind)}-{VERDICTS}", Records.read, missing)
    assert run.records is not None
    if kept is None:
        return True
    clean, whole = kept.of(CLEAN), run.records.of(CLEAN)
    same = all(
        torch.equal(getattr(clean, name), getattr(whole, name))
        for name in ("index", "label", "score")
    )
    return same and given(kept, rows, kind)


def _certificates_given(run: Run, missing: list[str]) -> bool:
    """Whether certificates are what is kept of each image; yes where nothing is."""
    stated = run.json.get("certificates")
    kept = _beside(run.folder / CERTIFIED, Certified.read, missing) if stated else None
    assert run.records is not None
    if not stated or kept is None:
        return True
    same = torch.equal(kept.index, run.records.index) and torch.equal(kept.label, run.records.label)
    return same and kept.gives(stated)


def _gives(kept: Records, stated: Mapping[str, Any], records: Records) -> bool:
    """Whether verdicts of a second evaluation are of the same images, and give its figures."""
    beyond, compared = stated.get("beyond") or {}, _compared(kept, stated)
    figures = [(stated["clean"], kept.of(CLEAN).right), (stated["worst_case"], compared.worst)]
    if "worst_case" in beyond:
        figures.append((beyond["worst_case"], kept.worst))
    if not (torch.equal(kept.index, records.index) and torch.equal(kept.label, records.label)):
        return False
    for name, row in stated["attacks"].items():
        rows = kept.of(name)
        # Both hand images on, whatever the evaluation does.
        figures.append((row, rows.right[rows.attacked]))
        if not _described(row, rows, kept, survivors=True):
            return False
    return all(_same(Figure.of(shown), Figure.over(score)) for shown, score in figures)


def _added(kept: Records, content: Mapping[str, Any], records: Records) -> bool:
    """Whether what a defense adds differs from what the verdicts of both give."""
    stated = content[BARE]
    alone = _compared(kept, stated)
    random = content["random"] or stated["random"]
    # Earlier versions had narrower intervals where few images differ.
    known = [added(alone, records, random, agreeing) for agreeing in (True, False)]
    return not any(alike(each, stated["added"]) for each in known)


def _transfer_given(
    handed: Records | None, kept: Records, content: Mapping[str, Any], records: Records
) -> bool:
    """Whether what is stated of images that were handed over is what the verdicts give."""
    if handed is None or not torch.equal(handed.index, records.index):
        return False
    stated = content[BARE]
    random = content["random"] or stated["random"]
    found = with_transferred(handed, records, _compared(kept, stated), random)
    return alike(found, stated[TRANSFERRED])


def _compared(kept: Records, stated: Mapping[str, Any]) -> Records:
    """The verdicts of the attacks on the classifier alone that the evaluation has as well."""
    beyond = (stated.get("beyond") or {"attacks": ()})["attacks"]
    return kept.under([name for name in kept.attacks if name not in beyond])


def _tries(content: Mapping[str, Any]) -> int | None:
    return ((content.get("randomness") or {}).get("tries") or {}).get("tries")


def outside(results: Results) -> dict[str, float]:
    """Attacks whose largest change is beyond the threat's epsilon, and that change; what cannot be
    compared is not among them.
    """
    threat = results.json["threat"]
    if not threat:
        return {}
    most = float(threat["epsilon"]) + ROUNDING
    sizes = {name: row.largest_perturbation for name, row in results.attacks.items()}
    return {name: size for name, size in sizes.items() if size is not None and not size <= most}


def _inside(run: Run) -> bool:
    """Whether no image of the verdicts was changed by more than the threat allows."""
    threat, records = run.json["threat"], run.records
    if not threat or records is None or not len(records):
        return True
    most = float(threat["epsilon"]) + ROUNDING
    return all(bool((records.of(name).distance <= most).all()) for name in records.attacks)


def _within(threat: Mapping[str, Any] | None, preset: Mapping[str, Any]) -> bool:
    """Whether an attack, as far as it says so itself, ran within the threat of results.json."""
    node = (preset.get("init_args") or {}).get("threat") or {}
    epsilon = (node.get("init_args") or {}).get("epsilon")
    return epsilon is None or (threat is not None and abs(threat["epsilon"] - epsilon) < 1e-6)


def _figures(run: Run) -> Iterator[tuple[Figure, Tensor]]:
    """Each figure of results.json, and the scores of the images that it is the mean of."""
    yield run.results.clean, run.score(CLEAN)
    for name, row in run.results.attacks.items():
        score = run.score(name)
        # With `survivors`, an attack's figures are about the images that reached it.
        attacked = run.records.of(name).attacked if run.records else None
        yield row.robust, score[attacked] if run.json["survivors"] else score
    yield run.results.worst_case, run.score(WORST)


def _same(shown: Figure, found: Figure) -> bool:
    """Whether two figures are the same, up to what results.json rounds off."""
    if shown.accuracy is None or found.accuracy is None:
        return shown.accuracy is found.accuracy
    pairs = (shown.accuracy, found.accuracy), (shown.low, found.low), (shown.high, found.high)
    return all(abs(one - other) < 1e-5 for one, other in pairs)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """A file from elsewhere may hold anything where a number should be: one line then.

    Raises:
        UserError: instead of what the code inside stumbles over.
    """
    try:
        yield
    except UserError:
        raise
    except STUMBLES as error:
        raise UserError(f"{path}: is damaged: {first_line(error)}: evaluate again") from error
