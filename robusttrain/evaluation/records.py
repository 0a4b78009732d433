"""The records of an evaluation: a table with a column for each fact, and a row for each image and
attack.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from robusttrain.core.errors import UserError
from robusttrain.evaluation.scoring import worst_case
from robusttrain.storage.files import parsed
from robusttrain.storage.weights import read_own, save_tensors

#: The rows of the images as they are, before any attack.
CLEAN = "clean"


@dataclass(frozen=True)
class Rows:
    """The rows of one attack, one for each image, all on the CPU.

    Args:
        index: (n,) int64, each image's place in its data set.
        label: (n,) int64, its true class.
        score: (n, draws) bool, whether the answer was right, on the draws that score.
        select: (n, draws) bool, the same on the draws by which the worst attack is chosen.
        attacked: (n,) bool, whether the attack was given the image.
        distance: (n,) float, between what the attack returned and the image, in the threat's norm.
        gradients: (n,) float, gradient evaluations that the image took.
        queries: (n,) float, forward passes alone that the image took.
        images: (n, C, H, W) in [0, 1], what the attack returned; None if images are not kept.
        broken: (n,) bool, whether attacks that follow may spare the image; None if nobody says.
    """

    index: Tensor
    label: Tensor
    score: Tensor
    select: Tensor
    attacked: Tensor
    distance: Tensor
    gradients: Tensor
    queries: Tensor
    images: Tensor | None = None
    broken: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: Tensor | slice) -> Rows:
        """Some of the rows."""
        return Rows(
            **{
                name: None if values is None else values[which]
                for name, values in self.columns().items()
            }  # type: ignore[arg-type]
        )

    def columns(self) -> dict[str, Tensor | None]:
        """The columns by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def right(self) -> Tensor:
        """(n,) float64: the share of the scoring draws in which the answer was right."""
        return self.score.double().mean(dim=1)

    @property
    def chosen_by(self) -> Tensor:
        """(n,) float64: the share of the selecting draws in which the answer was right."""
        return self.select.double().mean(dim=1)

    def judged(self, survivors: bool) -> Tensor:
        """(n,) bool: the images that an attack's figures are about, of those that it was given.

        With ``survivors`` these are the images that reached it, and the others are clean ones.
        Without, they are all: an image that it was not given was wrong to begin with.
        """
        return self.attacked if survivors else torch.ones_like(self.attacked)

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """All rows of several parts, one after another."""
        columns = {}
        for name in parts[0].columns():
            values = [part.columns()[name] for part in parts]
            tensors = [value for value in values if value is not None]
            columns[name] = torch.cat(tensors) if len(tensors) == len(values) else None
        return Rows(**columns)  # type: ignore[arg-type]


def once_each(index: Tensor) -> Tensor:
    """(m,) int64: places in ``index``, (n,) int64, sorted by image, each image once, the first
    place that it has.
    """
    order = index.argsort(stable=True)
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = index[order][1:] != index[order][:-1]
    return order[first]


@dataclass(frozen=True)
class Records:
    """The table of an evaluation.

    Args:
        rows: the rows of each attack by its name, `CLEAN` first; the images and their order are
            the same for all.
    """

    rows: Mapping[str, Rows]

    def of(self, attack: str) -> Rows:
        """The rows of an attack, or of `CLEAN`."""
        return self.rows[attack]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.rows[CLEAN])

    @property
    def attacks(self) -> list[str]:
        """The attacks' names, in their order."""
        return [name for name in self.rows if name != CLEAN]

    @property
    def index(self) -> Tensor:
        """(n,) int64, each image's place in its data set."""
        return self.rows[CLEAN].index

    @property
    def label(self) -> Tensor:
        """(n,) int64, the true classes."""
        return self.rows[CLEAN].label

    @property
    def worst(self) -> Tensor:
        """(n,) float64: of each image the share of scoring draws that are right, under the attack
        that is worst for it (`worst_case`).
        """
        rows = self.rows.values()
        return worst_case(
            torch.stack([each.chosen_by for each in rows]),
            torch.stack([each.right for each in rows]),
        )

    def under(self, attacks: Sequence[str]) -> Records:
        """The same table of some of the attacks, in the order of all."""
        return Records(
            {name: rows for name, rows in self.rows.items() if name in (CLEAN, *attacks)}
        )

    def without_images(self) -> Records:
        """The same table without adversarial images, and what only the run itself needs."""
        bare = {name: replace(rows, images=None, broken=None) for name, rows in self.rows.items()}
        return Records(bare)

    @staticmethod
    def merged(parts: Sequence[Records]) -> Records:
        """Records of all batches of all processes, sorted by image, each image once."""
        filled = [part for part in parts if len(part)] or list(parts[:1])
        merged = {}
        for name in filled[0].rows:
            rows = Rows.joined([part.of(name) for part in filled])
            merged[name] = rows[once_each(rows.index)]
        return Records(merged)

    @staticmethod
    def together(parts: Mapping[str, Records]) -> Records:
        """Records of several evaluations of one model on the same images as those of one: `worst`
        is over the attacks of all.

        Args:
            parts: by a name of each evaluation, which its attacks' names begin with.
        """
        rows = {CLEAN: next(iter(parts.values())).of(CLEAN)}
        for part, records in parts.items():
            rows |= {f"{part}: {name}": each for name, each in records.rows.items()}
        return Records(rows)

    def __repr__(self) -> str:
        count = len(next(iter(self.rows.values()), ()))
        return f"Records({', '.join(self.rows)}: {count} images each)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as safetensors: each column, and the attack that each row is of.

        Adversarial images stay out; ``--save_images`` writes a file of them for each attack.
        """
        table = Rows.joined([*self.without_images().rows.values()]).columns()
        columns = {name: values for name, values in table.items() if values is not None}
        sizes = torch.tensor([len(rows) for rows in self.rows.values()])
        columns["attack"] = torch.arange(len(self.rows)).repeat_interleave(sizes)
        save_tensors(columns, path, {"attacks": json.dumps(list(self.rows))})

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Records:
        """The table that `save` wrote.

        Raises:
            UserError: there is no such file, or it holds no records.
        """
        columns, metadata = read_own(path)
        expected = {each.name for each in fields(Rows)} - {"images", "broken"} | {"attack"}
        try:
            names = parsed(metadata["attacks"])
        except (KeyError, ValueError):
            names = None
        if not isinstance(names, list) or columns.keys() != expected:
            raise UserError(f"{Path(path)}: holds no records of an evaluation")
        attack = columns.pop("attack")
        table = Rows(**columns)
        return Records({name: table[attack == number] for number, name in enumerate(names)})
