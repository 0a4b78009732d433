"""Any data set whose images and classes stand in a table: a CSV file."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from robusttrain.core.checked import NonNegative, checked
from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.preparation import Interpolation
from robusttrain.data.base import Facts, ImageData, SplitName, missing_data
from robusttrain.data.checking import same_order
from robusttrain.data.class_order import (
    RENAME,
    class_name,
    fitting,
    numbered,
    numbering,
    read_order,
)
from robusttrain.data.image_files import (
    RESIZE,
    ImageFiles,
    check_pictures,
    faster_in_memory,
    preparation,
    side_of,
)
from robusttrain.data.imagefolder import NAMES, SPLITS
from robusttrain.data.notes import note, pasted, shown

logger = logging.getLogger(__name__)

#: Endings of tables, and what stands between their columns.
SEPARATORS = {".csv": ",", ".tsv": "\t"}
#: How the column with the splits is called, where there is one.
_SPLIT_COLUMN = "split"
#: What a column of splits may say.
_SPLITS = {*SPLITS, "", "training", "testing", "dev"}
#: A table with greater numbers of classes does not number classes.
_MOST_CLASSES = 100_000
#: Longer texts in the place of a file's name are shown by their beginning.
_LONGEST = 300


class _Row(NamedTuple):
    """A line of the table: its number, the file it names, the name of the class, and the path,
    which is the same however a line writes it (``./a.png``).
    """

    line: int
    file: str
    name: str
    path: str


@checked
class ImageTable(ImageData):
    """Images that a table names, one a line, each with its class.

    The table is text in UTF-8, with commas between its columns, or tabs in a ``.tsv``. Its first
    line names the columns. Where one is called as ``split_column`` says, it has ``train`` and
    ``test`` (or ``val``); other lines are passed over, and counted. Without it all lines are test
    images; another column that seems to name splits is noted. Decisions about files
    (`robusttrain.data.decoding.Remark`) are logged, and stand in ``notes``.

    Classes that are whole numbers are the classes' numbers, from 0 on. Names are numbered as they
    sort. ``classes`` gives another order, and so does the checkpoint that is evaluated.

    Args:
        root: the table.
        batch_size: images of a batch, in each process.
        validation: share of the train split that is held out for validation.
        crop: width in pixels of the border of zeros for random crops in training; 0 for none.
        flip: whether to mirror half of the images in training.
        folder: where names of files start from; by default the table's own folder.
        ending: what the names of files lack, such as .jpg.
        file_column: the column with the names of the files.
        class_column: the column with the classes.
        split_column: the column with the splits; a table need not have one called "split".
        image_size: height and width in pixels; the shorter side is resized to this length and the
            centre is cropped. By default images stay as they are, and must be squares of one size.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        classes: file with the order of the classes: one name a line, or a JSON or YAML list or
            mapping to numbers; classes without an image count as well.
        white: value of white in grey images of more than 8 bits; by default the format's own: 65535
            for 16 bits, 1 for floats.
        memory_limit_gib: a split that would take more memory than this is decoded batch by batch,
            by the ``workers`` side by side.
        seed: seed of the validation split, of the order and of the augmentation.
        workers: processes that load batches; 0 loads them in the main process.
        resize: with ``image_size``, pixels that the shorter side is resized to instead, before the
            centre is cropped: 256 before a crop of 224 leaves a border out.
        interpolation: by which pictures are resized, antialiased: torchvision's weights are mostly
            evaluated on bilinear ones.
    """

    name = "table"

    def __init__(
        self,
        root: str = "data/labels.csv",
        batch_size: int = 128,
        validation: float = 0.1,
        crop: int = 4,
        flip: bool = True,
        folder: str | None = None,
        ending: str = "",
        file_column: str = "file",
        class_column: str = "class",
        split_column: str = _SPLIT_COLUMN,
        image_size: int | None = None,
        channels: int = 3,
        classes: str | None = None,
        white: float | None = None,
        memory_limit_gib: NonNegative = 4.0,
        seed: int = 0,
        workers: int = 0,
        resize: int | None = None,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__(root, batch_size, validation, crop, flip, seed, workers)
        check_pictures(image_size, channels, white)
        self.preparation = preparation(image_size, resize, interpolation)
        self.channels = channels
        self._folder = self.root.parent if folder is None else Path(folder).expanduser()
        self._ending, self._classes_file, self._white = ending, classes, white
        self._columns = {"file_column": file_column, "class_column": class_column}
        self._split_column = split_column
        self._resize_to, self._memory_limit = image_size, memory_limit_gib * 2**30
        self._checkpoints: list[str] | None = None
        self._rows: dict[SplitName, list[_Row]] | None = None
        self._size: int | None = None

    @property
    def faster_loading(self) -> str:
        images = self._train.images if self._train is not None else None
        return f"{super().faster_loading}{faster_in_memory(images)}"

    def number_as(self, classes: Sequence[str]) -> None:
        """Number classes as a checkpoint does, if it has all that the table names and no file gives
        another order.
        """
        self._checkpoints = list(classes)
        if self._train is not None or self._test is not None:
            super().number_as(classes)

    def facts(self) -> Facts:
        """The number of classes, and the given size or that of the first image."""
        splits = self._table()
        rows = [*splits["train"], *splits["test"]]
        # Whoever evaluates need not have the training images.
        first = next((row for row in rows if os.path.isfile(self._where(row))), rows[0])
        return Facts(len(self._classes()[0]), self.channels, self._resize_to or self._side(first))

    def _read(self, split: SplitName) -> tuple[Tensor | ImageFiles, Tensor, list[str]]:
        rows, (classes, how) = self._table()[split], self._classes()
        if not rows:
            column = f"{self._split_column} = {' or '.join(NAMES[split][:2])}"
            fix = "without such a column all lines are test images; --data.split_column names it"
            raise missing_data(f"{split} images", self.root, column, fix)
        logger.info("%s", numbering(classes, how))
        number = {name: place for place, name in enumerate(classes)}
        labels = torch.tensor([_number(row.name, number) for row in rows])
        there = set(labels.tolist())
        if empty := [name for name in classes if number[name] not in there]:
            names = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
            note(self.notes, f"classes without a {split} image: {len(empty)} ({names})")
        paths = [self._path(row) for row in rows]
        size = self._resize_to or self._side(rows[0])
        files = ImageFiles(
            paths, size, self.channels, self.preparation, RESIZE, self._white, self.notes
        )
        return files.load() if files.nbytes <= self._memory_limit else files, labels, classes

    def _classes(self) -> tuple[list[str], str]:
        """The names of the classes in the order of their numbers, and the origin of the order."""
        theirs, rows = self._checkpoints, self._table()
        names = numbered(sorted({row.name for each in rows.values() for row in each}))
        if self._classes_file is not None:
            order = read_order(self._classes_file)
            fitting(names, order, f"--data.classes {self._classes_file}", "class")
            return order, f"by --data.classes {self._classes_file}"
        if theirs is not None and set(names) <= set(theirs):
            return theirs, "as in the checkpoint"
        if all(map(_is_number, names)):
            return self._by_number(int(names[-1]) + 1)
        self._refuse_other_numbers(names)
        if theirs is None:
            return names, "by their sorted names"
        if len(names) == len(theirs):
            same_order(names, theirs, shown(self.root), self.notes, RENAME)
            few = ", ".join(theirs[:3])
            return names, f"by their sorted names, since the checkpoint has others ({few} ...)"
        unknown = next(name for name in names if name not in set(theirs))
        few = f"{', '.join(map(repr, theirs[:5]))}{' ...' if len(theirs) > 5 else ''}"
        raise UserError(
            f"{shown(self.root)}: the class {unknown!r} is none of the checkpoint's {len(theirs)}"
            f" ({few}): rename it, or give the checkpoint's classes in their order, by the names in"
            " the table, with --data.classes FILE"
        )

    def _refuse_other_numbers(self, names: Sequence[str]) -> None:
        """Raise UserError where all classes are whole numbers, but for one that is written
        otherwise, below 0 or not a number: sorted as text, each would get the number of another.
        """
        values = [_value(name) for name in names]
        if None in values or not any(value == value for value in values):
            return
        if all(value != value or value.is_integer() for value in values if value is not None):
            name = next(name for name in names if not _is_number(name))
            raise UserError(
                f"{shown(self.root)}: the classes are numbers, and {name!r} is no whole number from"
                " 0 on: write 0, 1, 2, or name all classes in their order with --data.classes FILE"
            )

    def _by_number(self, count: int) -> tuple[list[str], str]:
        """Classes that the table numbers, so many at least."""
        if count > _MOST_CLASSES:
            raise UserError(
                f"{shown(self.root)}: the class {count - 1} is no class's number from 0 on: name"
                " all classes in their order with --data.classes FILE"
            )
        theirs = self._checkpoints
        if theirs is not None and count > len(theirs):
            raise UserError(
                f"{shown(self.root)}: the class {count - 1} is none of the checkpoint's"
                f" {len(theirs)}, whose numbers are 0 to {len(theirs) - 1}: give the table's"
                " classes in their order with --data.classes FILE"
            )
        names = [str(number) for number in range(count if theirs is None else len(theirs))]
        if theirs is not None:
            same_order(names, theirs, shown(self.root), self.notes, RENAME)
        return names, "as in the table"

    def _table(self) -> dict[SplitName, list[_Row]]:
        """The lines of each split, read once."""
        if self._rows is not None:
            return self._rows
        every = self._splits([*self._lines()])
        if not every["train"] and not every["test"]:
            fix = "give one line for each, below a line that names the columns"
            raise missing_data("images", self.root, "lines with a file and its class", fix)
        self._refuse_two_classes([row for rows in every.values() for row in rows])
        for rows in every.values():
            self._note_twice(rows)
        trained = {row.path for row in every["train"]}
        if both := [row.file for row in every["test"] if row.path in trained]:
            note(
                self.notes,
                f"images of both splits, which no accuracy should rest on: {len(both):,}; the"
                f" first: {shown(both[0])}",
            )
        self._rows = every
        return every

    def _lines(self) -> Iterator[tuple[_Row, str | None]]:
        """The table's lines, and what their column of splits says."""
        if not self.root.is_file():
            fix = "give --data.root FILE; --data FOLDER takes one folder of images a class"
            raise missing_data("table", self.root, "a file, .csv or .tsv", fix)
        separator = SEPARATORS.get(self.root.suffix.lower(), ",")
        try:
            text = self.root.read_text(encoding="utf-8-sig")
            # Quotes may come after a comma and a blank.
            reader = csv.reader(
                StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True
            )
            header = [cell.strip() for cell in next(reader, [])]
            places = [self._place(header, option) for option in self._columns]
            # Whoever names a column means it to be read.
            there = self._split_column in header or self._split_column != _SPLIT_COLUMN
            split = self._place(header, "split_column") if there else None
            values: list[set[str]] = [set() for _ in header]
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                yield self._row(reader.line_num, cells, places, split, len(header))
                for seen, cell in zip(values, cells, strict=True):
                    if len(seen) <= len(_SPLITS):  # more are no splits
                        seen.add(cell.strip().lower())
            if not there:
                self._note_split_column(header, places, values)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, UnicodeDecodeError):
                reason = "it is no text in UTF-8"
            raise UserError(f"cannot read the table {shown(self.root)} ({reason})") from error

    def _note_split_column(
        self, header: Sequence[str], places: Sequence[int], values: Sequence[set[str]]
    ) -> None:
        """Note a column that is not read and seems to name splits: training images would be tested.

        Args:
            header: names of the columns.
            places: of the columns that are read.
            values: of each column, in lower case.
        """
        for place, (column, seen) in enumerate(zip(header, values, strict=True)):
            called = column.lower() == _SPLIT_COLUMN
            if place not in places and (called or ("train" in seen and seen <= _SPLITS)):
                note(
                    self.notes,
                    f"all lines are test images, though the column {shown(column)!r} seems to name"
                    f" splits: --data.split_column {pasted(column)} reads it",
                )

    def _place(self, header: Sequence[str], option: str) -> int:
        """The place of a column."""
        column = {**self._columns, "split_column": self._split_column}[option]
        if header.count(column) != 1:
            columns = ", ".join(map(repr, header)) or "no line with their names"
            which = "two of" if column in header else "none of"
            fix = f"is {which} the columns of {shown(self.root)} ({columns}): name one of them"
            raise OptionError(f"data.{option}", column, fix)
        return header.index(column)

    def _row(
        self, line: int, cells: Sequence[str], places: Sequence[int], split: int | None, wide: int
    ) -> tuple[_Row, str | None]:
        where = f"{shown(self.root)}, line {line}"
        if len(cells) != wide:
            raise UserError(
                f"{where}: has {len(cells)} columns, and the first line {wide}: mend the table, and"
                ' put names with its separator in "quotes"'
            )
        file, name = (cells[place].strip() for place in places)
        if not file or not name:
            raise UserError(f"{where}: names no {'class' if file else 'file'}: add it there")
        path = os.path.abspath(os.path.join(self._folder, file))
        row = _Row(line, file, class_name(name), path)
        return row, None if split is None else cells[split].strip()

    def _splits(self, rows: Sequence[tuple[_Row, str | None]]) -> dict[SplitName, list[_Row]]:
        """The lines by split; those of no split are noted."""
        if all(split is None for _, split in rows):
            return {"train": [], "test": [row for row, _ in rows]}
        named: dict[str, list[_Row]] = {}
        for row, split in rows:
            named.setdefault((split or "").lower(), []).append(row)
        taken = {kind: next((n for n in NAMES[kind] if n in named), None) for kind in NAMES}
        for name, lines in named.items():
            if name not in taken.values():
                note(
                    self.notes,
                    f"lines that are not read: {len(lines):,}, whose {self._split_column} is"
                    f" {shown(name)!r}; the first: line {lines[0].line}",
                )
        return {kind: named[name] if name else [] for kind, name in taken.items()}

    def _refuse_two_classes(self, rows: Sequence[_Row]) -> None:
        """Raise UserError where a file has two classes, in whatever splits."""
        first: dict[str, _Row] = {}
        for row in rows:
            other = first.setdefault(row.path, row)
            if row.name != other.name:
                raise UserError(
                    f"{shown(self.root)}, line {row.line}: {shown(row.file)} is"
                    f" {shown(row.name)!r}, and {shown(other.name)!r} in line {other.line}: an"
                    " image has one class"
                )

    def _note_twice(self, rows: Sequence[_Row]) -> None:
        """Note files that come twice in a split."""
        first: dict[str, _Row] = {}
        if again := [row for row in rows if first.setdefault(row.path, row) is not row]:
            note(
                self.notes,
                f"lines that name an image once more, which counts as often: {len(again):,}; the"
                f" first: line {again[0].line}",
            )

    def _where(self, row: _Row) -> str:
        return os.path.join(self._folder, f"{row.file}{self._ending}")

    def _path(self, row: _Row) -> str:
        path = self._where(row)
        if not os.path.isfile(path):  # nor where a name is too long for a file
            raise UserError(
                f"{shown(self.root)}, line {row.line}: there is no file {_cut(path)}: give the"
                " folder that names start from with --data.folder DIR, and what they lack with"
                " --data.ending .jpg"
            )
        return path

    def _side(self, row: _Row) -> int:
        """Height and width of the first image, which is looked at once."""
        if self._size is None:
            self._size = side_of(self._path(row))
        return self._size


def _cut(path: str) -> str:
    """A path as it is shown; a text that is too long for one, shortened."""
    text = shown(path)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _is_number(name: str) -> bool:
    """Whether a class is a whole number."""
    return name.isascii() and name.isdecimal()


def _value(name: str) -> float | None:
    """The value of a class's name, if that is a number (or nan)."""
    try:
        return float(name)
    except ValueError:
        return None


def _number(name: str, numbers: Mapping[str, int]) -> int:
    """The number of a class: that of its name, or 7 for 07 where the table numbers classes."""
    return numbers[name] if name in numbers else int(name)
