"""``results.json`` as objects: each figure, and all that explains the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from robusttrain.attacks.sources.surrogates import surrogates_in
from robusttrain.core.errors import UserError, first_line
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.scoring import wilson
from robusttrain.storage.files import parsed, writable, write_json
from robusttrain.storage.occupied import TRANSFER, kind_of

#: The version of the form of results.json; 1 was that of robusttrain 0.1, without a plan.
SCHEMA = 2
#: The file of the records, beside results.json.
VERDICTS = "verdicts.safetensors"


@dataclass(frozen=True)
class Figure:
    """An accuracy with its 95 % interval over images, each in [0, 1]; None where no image
    counts.
    """

    accuracy: float | None
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Figure:
        """A row of results.json."""
        value = row["accuracy"] if "accuracy" in row else row["robust_accuracy"]
        return cls(value, *row["ci95"])

    @classmethod
    def over(cls, score: Tensor) -> Figure:
        """The mean of scores (n,) in [0, 1] over images."""
        if not len(score):
            return cls(None, *wilson(0.0, 0))
        accuracy = min(1.0, float(score.double().mean()))
        return cls(accuracy, *wilson(accuracy, len(score)))

    def __str__(self) -> str:
        if self.accuracy is None:
            return "-"
        return f"{100 * self.accuracy:.1f} % ({100 * self.low:.1f} - {100 * self.high:.1f})"


@dataclass(frozen=True)
class AttackFigures:
    """What one attack left of the target, and what it cost.

    Attributes:
        robust: accuracy on what the attack returned.
        success_rate: share of broken images among those that were right before; None where there
            were none.
        success_rate_of: how many images were right before.
        largest_perturbation: in the threat's norm, pixel values in [0, 1].
        gradients: gradient evaluations an image.
        queries: forward passes alone, an image.
        seconds: over all processes.
        knows: what the attacker knew.
        precision: in which the attack differentiated.
        preset: the attack's node, all values included.
    """

    robust: Figure
    success_rate: float | None
    success_rate_of: int
    largest_perturbation: float
    gradients: float
    queries: float
    seconds: float
    knows: str
    precision: str
    preset: Mapping[str, Any]

    @property
    def trains(self) -> bool:
        """Whether the attacker trains a model for it, against each target."""
        return bool(surrogates_in(self.preset))


@dataclass(frozen=True)
class Results:
    """The figures of one evaluation.

    Attributes:
        clean: without an attack.
        attacks: by name.
        worst_case: per image over all attacks.
        plan: what was evaluated; `robusttrain.evaluation.plan.EvaluationPlan`.
        records: one column a fact, one row an image and attack; None where they were not saved
            (``--save_verdicts false``).
        json: the whole content of the file: target, weights' hash, indices of the images, versions,
            processor, what was left out and why, the audit.
    """

    clean: Figure
    attacks: Mapping[str, AttackFigures]
    worst_case: Figure
    plan: EvaluationPlan
    json: Mapping[str, Any]
    records: Records | None = None

    @property
    def only(self) -> AttackFigures:
        """The figures of the attack, where there was one.

        Raises:
            ValueError: there were several, or none.
        """
        (row,) = self.attacks.values()
        return row

    def save(self, folder: str | Path) -> None:
        """Write results.json, and the records beside it if there are any.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        folder = writable(Path(folder), "folder")
        write_json(self.json, folder / "results.json")
        if self.records is not None:
            self.records.save(folder / VERDICTS)

    def _share(self, attack: str) -> str:
        """Of which images an attack's accuracy is, where it was handed only some."""
        row = self.json["attacks"][attack]
        whole = self.json["images"]
        few = "images" in row and row["images"] != whole
        return f"of the {row['images']:,} images that stood until then" if few else ""

    @property
    def _ball(self) -> str:
        """Norm and radius, as a line."""
        said = self.json.get("threat")
        if not said:
            return ""
        own = f" of {said['ball']}" if "ball" in said else ""
        return f"{said['norm']}, epsilon {said['epsilon']:g}{own}"

    def __str__(self) -> str:
        lines = [
            ("clean", str(self.clean)),
            *((each, f"{row.robust} {self._share(each)}") for each, row in self.attacks.items()),
            ("worst case", str(self.worst_case)),
            *([("audit", self.json["verdict"])] if "verdict" in self.json else []),
        ]
        width = max(len(name) for name, _ in lines)
        head = f"{self.json['images']:,} images" + (f", {self._ball}" if self._ball else "")
        return "\n".join([head, *(f"{name:<{width}}  {row}".rstrip() for name, row in lines)])

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(f'{figures.robust} {self._share(name)}')}</td>"
            f"<td>{escape(figures.knows)}</td></tr>"
            for name, figures in self.attacks.items()
        )
        verdict = self.json.get("verdict")
        audit = (
            "" if verdict is None else f"<tr><td>audit</td><td>{escape(verdict)}</td><td></td></tr>"
        )
        return (
            "<table><tr><th>attack</th><th>accuracy (95 %)</th><th>the attacker knows</th></tr>"
            f"<tr><td>none</td><td>{escape(str(self.clean))}</td><td></td></tr>{rows}"
            f"<tr><th>worst case</th><th>{escape(str(self.worst_case))}</th>"
            f"<td>{escape(self._ball)}</td></tr>{audit}</table>"
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """From the content of a results.json."""
        plan = EvaluationPlan.from_json(content["plan"])
        attacks = {
            name: AttackFigures(
                Figure.of(row),
                row["success_rate"],
                row["success_rate_of"],
                row["largest_perturbation"],
                row["gradient_evaluations_per_image"],
                row["queries_per_image"],
                row["seconds"],
                row["knows"],
                content["precision"]["attacks"][name],
                plan.attacks[name],
            )
            for name, row in content["attacks"].items()
        }
        return cls(
            Figure.of(content["clean"]), attacks, Figure.of(content["worst_case"]), plan, content
        )


def read_results(path: str | Path, records: bool = True) -> Results:
    """The results that evaluate.py wrote.

    Args:
        path: of results.json, or of the folder that holds it.
        records: whether to read those, too, where they lie beside it.

    Raises:
        UserError: there is no such file, it holds no results, or results without a plan.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        content = parsed(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): name the folder of an evaluation, or its"
            " results.json"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: is no JSON: name a results.json that evaluate.py wrote"
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema is None and not (isinstance(content, dict) and {"clean", "attacks"} & {*content}):
        raise UserError(f"{path}: holds no results: name a results.json that evaluate.py wrote")
    if schema != SCHEMA:
        if (kind := kind_of(content)) == TRANSFER:
            fix = "its pictures lie beside it; name the folder of an evaluation"
            raise UserError(f"{path}: holds {kind}: {fix}")
        form = "of version 0.1, which kept no plan" if schema is None else f"of schema {schema}"
        raise UserError(f"{path}: is {form}; this version reads schema {SCHEMA}: evaluate again")
    try:
        results = Results.from_json(content)
    except KeyError as error:
        raise UserError(f"{path}: is damaged: {error} is missing: evaluate again") from error
    except (AttributeError, TypeError, RecursionError) as error:
        what = f"something is not what it was ({first_line(error)})"
        raise UserError(f"{path}: is damaged: {what}: evaluate again") from error
    verdicts = path.parent / VERDICTS
    there = records and verdicts.is_file()
    return replace(results, records=Records.read(verdicts)) if there else results


#: Keys of results.json that say nothing about the model, and may differ from run to run.
_PASSING = {
    *("seconds", "audit_seconds", "processor", "command", "output", "plan"),
    # Names and lines with paths of files, whose content has a hash.
    *("data_notes", "data", "target"),
    # Of how gradients were taken: what was measured.
    *("because", "fell_back"),
}
#: Keys that files of earlier versions do not have.
_LATER = {
    *("classes", "data_hash", "compile", "other_class_order", "audit_checks", "randomness"),
    *("sources", "code", "training_seed", "other_pixel_values", "doubts", "one_answer"),
    "transferred",
}


def changes(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """A line for each difference between two results.json, except in time and place."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            if key not in _PASSING and not (key in _LATER and before.get(key) is None):
                yield from changes(
                    before.get(key), now.get(key), f"{where}.{key}" if where else key
                )
    elif before != now:
        yield f"{where}: was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
