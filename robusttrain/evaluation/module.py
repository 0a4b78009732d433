"""The engine on Lightning's Trainer, so that several processes share the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from robusttrain.attacks.base import check_images
from robusttrain.core.in_float32 import InFloat32
from robusttrain.core.processes import everyone
from robusttrain.data import Batch
from robusttrain.evaluation.beside import (
    BARE,
    KNOWN_DRAW,
    TRANSFERRED,
    Beside,
    added,
    transferred,
    with_transferred,
)
from robusttrain.evaluation.certification import Certification, Certified
from robusttrain.evaluation.curve import Curve, Rung, file_name
from robusttrain.evaluation.engine import Counted, Engine
from robusttrain.evaluation.examples import Fallen, fallen
from robusttrain.evaluation.helping import help_others
from robusttrain.evaluation.randomness import randomness
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.results import results
from robusttrain.storage.journal import Journal

#: Seconds between two looks at a batch that another process works on.
PAUSE = 0.2


def gather(mine: tuple[list[Records], dict[str, float]]) -> tuple[Records, dict[str, float]]:
    """Records and seconds of all processes together."""
    all_parts = everyone(mine)
    seconds: dict[str, float] = {}
    for _, spent in all_parts:
        _add(seconds, spent)
    return Records.merged([part for parts, _ in all_parts for part in parts]), seconds


def _add(seconds: dict[str, float], spent: Mapping[str, float]) -> None:
    for name, value in spent.items():
        seconds[name] = seconds.get(name, 0.0) + value


class Evaluation(InFloat32, pl.LightningModule):
    """Runs an engine over the test split; afterwards ``results`` holds the results, ``records`` the
    verdicts, ``fallen`` a few of the images that fell.

    Args:
        engine: the engine; its target and sources follow this module to the device.
        journal: shows processes that run the same command what the others work on.
        waiting: called, when nothing else is left to do, with the number of batches that other
            processes work on.
        curves: over radii or efforts, beside the evaluation itself.
        besides: evaluations of the same images by other attackers, or of other targets.
        tries: how often an attacker may submit an image to a random target.
        certification: certifies the images, and judges the adversarial ones on the smoothed
            classifier.
        planned: evaluations that an image costs at most, for progress.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal | None = None,
        waiting: Callable[[int], None] = lambda count: None,
        curves: Sequence[Curve] = (),
        besides: Sequence[Beside] = (),
        tries: int | None = None,
        certification: Certification | None = None,
        planned: float = 0,
    ) -> None:
        super().__init__()
        self.certification, self.planned = certification, planned
        self._certified: list[Certified] = []
        self.curves = [*curves]
        self.fallen: Fallen | None = None
        self._points: list[list[Records]] = [[] for _ in self.curves]
        self.engine, self.journal, self.waiting = engine, journal, waiting
        self.besides, self.tries = [*besides], tries
        self._second: list[tuple[list[Records], dict[str, float]]] = [([], {}) for _ in besides]
        self._handed: list[Records] = []
        #: Records of the besides and curves by name, and certificates, once the run is over.
        self.second: dict[str, Records] = {}
        self.certified: Certified | None = None
        engines = [engine, *(each.engine for each in besides)]
        self.parts = nn.ModuleList(
            [part for each in engines for part in (each.target, *each.sources.values())]
            + ([certification.smoothed.model] if certification else [])
        )
        self.results: dict[str, Any] = {}
        self._records: Records | None = None
        self._mine: list[Records] = []
        self._seconds: dict[str, float] = {}
        self._others: list[Batch] = []

    @property
    def records(self) -> Records:
        """The table of all images, once the run is over."""
        assert self._records is not None
        return self._records

    def on_test_model_eval(self) -> None:
        """Nothing: the engine puts models into their mode, also those that know but one and take no
        call of ``eval()`` (exported programs).
        """

    def on_test_model_train(self) -> None:
        """Nothing, as above."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch.images) and not self._run(batch):
            self._others.append(batch)

    def _run(self, batch: Batch) -> bool:
        """Attack a batch, or take another process's finished entries; False while another process
        works on it.
        """
        with self.journal.taken(batch.indices) if self.journal else nullcontext(True) as mine:
            if mine:
                before = replace(self.engine.counted)
                records, seconds = self.engine.run(batch.images, batch.labels, batch.indices)
                self._mine.append(records.without_images() if self._spare else records)
                self._look(batch, records)
                _add(self._seconds, seconds)
                self._count_spared(len(batch.indices), before)
        return mine

    def _count_spared(self, images: int, before: Counted) -> None:
        """Count what this batch was spared of what is planned for each image: images that fell get
        no further points of curves, and no certificates of what did not break them.
        """
        now = self.engine.counted
        counted, given = now.total - before.total, now.given - before.given
        self.engine.count(max(0.0, images * self.planned - counted), spent=given < counted)

    @property
    def _spare(self) -> bool:
        """Whether nobody asked for adversarial images."""
        return not self.engine.keep_images

    def _look(self, batch: Batch, records: Records) -> None:
        """Take examples from a batch that was attacked, and its part of the curves."""
        images = check_images(batch.images)

        def made(name: str) -> Tensor | None:
            if not self._spare:
                return records.of(name).images
            journal = self.engine.journal
            entry = journal.get(name, images, batch.labels, batch.indices) if journal else None
            return entry["images"] if entry else None

        self.fallen = fallen(records, self.engine.seed, images, made, self.fallen)
        seen = self._certify(images, batch, records, made) if self.certification else None
        for curve, points in zip(self.curves, self._points, strict=True):
            points.append(curve.run(images, batch.labels, batch.indices, records, seen))
        for beside, (parts, seconds) in zip(self.besides, self._second, strict=True):
            second, spent = beside.run(self.engine, images, batch.labels, batch.indices)
            parts.append(second.without_images())
            _add(seconds, spent)
            if beside.judge is not None:
                given = (images, batch.labels, batch.indices)
                alone = beside.compared(second)
                self._handed.append(transferred(self.engine, *given, records, alone))

    def _certify(
        self,
        images: Tensor,
        batch: Batch,
        records: Records,
        made: Callable[[str], Tensor | None],
    ) -> Callable[[Rung, Tensor, Records], None]:
        """Certify a batch, judge the evaluation's own adversarial images, and return what judges
        those of a curve's further points.
        """
        assert self.certification is not None
        certification = self.certification
        certified = certification.certify(images, batch.labels, batch.indices)
        self._certified.append(certified)
        whole = torch.arange(len(images))
        for number, name in enumerate(records.attacks):
            adversarial = made(name)
            assert adversarial is not None  # a journal, or the engine, keeps them
            certification.judge(
                certified, whole, images, adversarial.to(images.device), name, number
            )

        def seen(rung: Rung, here: Tensor, further: Records) -> None:
            there = here.to(images.device)
            for number, name in enumerate(records.attacks):
                if name not in further.rows:
                    continue
                adversarial = further.of(name).images
                assert adversarial is not None  # the curve was asked for them
                certification.judge(
                    certified,
                    here,
                    images[there],
                    adversarial.to(images.device),
                    rung.stage(name),
                    number,
                )

        return seen

    def on_test_epoch_end(self) -> None:
        if self.journal is not None and self.trainer.world_size > 1:
            help_others(self.trainer, self.engine, self.journal)
        if self._others:
            self.waiting(len(self._others))
        while self._others:
            # The process that holds a batch finishes it, or dies and leaves it to this one.
            batch = self._others.pop(0)
            if not self._run(batch):
                self._others.append(batch)
                time.sleep(PAUSE)
        self._records, seconds = gather((self._mine, self._seconds))
        self.results = results(self._records, self.engine, seconds)
        self.fallen = Fallen.joined([each for each in everyone(self.fallen) if each is not None])
        for beside, mine in zip(self.besides, self._second, strict=True):
            self.second[beside.name], spent = gather(mine)
            self.results[beside.name] = beside.content(self.second[beside.name], spent)
        if BARE in self.second:
            random = self.results["random"] or self.results[BARE]["random"]
            bare = next(each for each in self.besides if each.name == BARE)
            alone = bare.compared(self.second[BARE])
            self.results[BARE]["added"] = added(alone, self._records, random)
            handed = self.second[TRANSFERRED] = gather((self._handed, {}))[0]
            self.results[BARE][TRANSFERRED] = with_transferred(handed, self._records, alone, random)
        self.results["randomness"] = randomness(
            self.results, self._records, self.tries, self.second.get(KNOWN_DRAW)
        )
        if self.curves:
            self.results["curves"] = {}
            for curve, points in zip(self.curves, self._points, strict=True):
                whole = self.second[file_name(curve.kind)] = gather((points, {}))[0]
                self.results["curves"][curve.kind] = curve.points(whole)
        if self.certification is not None:
            parts = [part for mine in everyone(self._certified) for part in mine]
            self.certified = Certified.merged(parts)
            self.results["certificates"] = self.certification.content(self.certified)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.engine.target(images)
        return logits
