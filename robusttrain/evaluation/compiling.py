"""Whether networks are compiled for gradients (``--compile``): measured on this machine, and only
where compiled gradients are right.

Compiling takes a minute or so for a network, and gains much on some machines and nothing on others.
Verdicts are plain float32 passes in any case.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robusttrain.attacks import prepared
from robusttrain.core.processor import finish, seconds_of
from robusttrain.core.telling import duration
from robusttrain.evaluation.precision import CLOSE, away
from robusttrain.models.compiling import CompilationFailed, Mode, gradients_by, reason
from robusttrain.models.fast import FastModel

Compile = Literal["auto", "off", "on"]
COMPILE = ("auto", "off", "on")
#: Images of a measurement on a CPU, and of a smaller batch that the same code has to take.
IMAGES, FEWER = 32, 24
#: How many times as fast compiled gradients have to be, where nobody said "on".
WORTHWHILE = 1.1
#: Seconds that compiling one network may take, before anything is measured; and the share of all
#: gradients' time that it may save. Shorter work is not tried at all.
USUAL, SAVES = 60.0, 0.5


@dataclass(frozen=True)
class Choice:
    """How gradients are taken, and why.

    Args:
        mode: of `robusttrain.models.compiling`.
        why: in words.
        failed: why this process does without, although the run has chosen to compile.
    """

    mode: Mode
    why: str
    failed: str = ""

    @property
    def active(self) -> Mode:
        """How gradients are taken here."""
        return "off" if self.failed else self.mode

    def __str__(self) -> str:
        how = {
            "off": "gradients are not compiled",
            "default": "gradients are compiled",
            "reduce-overhead": "gradients are compiled, with CUDA graphs",
        }
        if self.failed:
            return f"compile: this run began so, but here {self.failed}, so it goes on without"
        return f"compile: {how[self.mode]}: {self.why}"

    def to_json(self) -> dict[str, str]:
        """Plain values, for results.json."""
        known = {"mode": self.mode, "because": self.why}
        return known | ({"fell_back": self.failed} if self.failed else {})


#: What is chosen where nobody asked.
PLAIN = Choice("off", "nobody asked for it")


@dataclass(frozen=True)
class Trial:
    """One piece of work, plain and compiled.

    Args:
        plain: seconds as it is.
        compiled: seconds once it is compiled.
        compiling: seconds that the first time took beyond that.
        cosine: between the gradients of both.
        failed: why it does not work; empty if it does.
    """

    plain: float
    compiled: float = 0.0
    compiling: float = 0.0
    cosine: float = 1.0
    failed: str = ""

    @property
    def refused(self) -> str:
        """Why compiled gradients are not to be used, whatever they cost; empty if they are."""
        if self.failed:
            return f"compiling fails ({self.failed})"
        if not self.cosine >= CLOSE:  # NaN among them
            return f"a compiled gradient is at a cosine of {self.cosine:.2f} to the plain one"
        return ""


@dataclass(frozen=True)
class Work:
    """What would be compiled, and how much of it there is.

    Args:
        gradient: a gradient of so many images, in the mode of the context.
        images: how many images a measurement takes.
        times: how often the whole run takes such a gradient.
    """

    gradient: Callable[[int], Tensor]
    images: int
    times: float


def work_of(network: FastModel, images: Tensor, evaluations: float) -> Work:
    """The gradients of a classifier's fast copy.

    Args:
        network: on the images' device.
        images: its inputs, (B, C, H, W).
        evaluations: of single images, that are planned.
    """
    # Pixels beyond the batch are noise: batches below 16 images would not be compiled.
    count = max(FEWER, len(images))
    images = images.detach().clone()
    if len(images) < count:
        more = torch.rand(count - len(images), *images.shape[1:], device=images.device)
        images = torch.cat([images, more.to(images.dtype)])

    def gradient(number: int) -> Tensor:
        with prepared(network):
            return away(network, images[:number])

    return Work(gradient, count, evaluations / count)


def tried(work: Work, mode: Mode, device: torch.device, rounds: int = 3) -> Trial:
    """Take a piece of work plain and in ``mode``, in turns."""
    call = lambda: work.gradient(work.images)  # noqa: E731 - what is timed, twice
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        plain = seconds_of(call, device, 1)
        torch.manual_seed(0)  # a network that draws draws the same in both
        exact = call().flatten(1).float()
        try:
            with warnings.catch_warnings(), gradients_by(mode):
                warnings.simplefilter("error", CompilationFailed)
                start = time.perf_counter()
                call()
                if work.images > FEWER:
                    work.gradient(FEWER)
                finish(device)
                first = time.perf_counter() - start
                torch.manual_seed(0)
                got = call().flatten(1).float()
        except Exception as error:  # noqa: BLE001 - compilers fail in any way, backward among them
            text = reason(error)
            return Trial(plain, failed=text.removeprefix("compile: "))
        cosine = torch.cosine_similarity(exact, got).nanmedian().item()
        compiled = first
        for _ in range(rounds):
            plain = min(plain, seconds_of(call, device, 1))
            with gradients_by(mode):
                compiled = min(compiled, seconds_of(call, device, 1))
    return Trial(plain, compiled, max(0.0, first - compiled), cosine)


def modes_on(device: torch.device) -> Sequence[Mode]:
    """What can be measured on a device."""
    return ("default", "reduce-overhead") if device.type == "cuda" else ("default",)


def choose_mode(asked: str, works: Sequence[Work], device: torch.device) -> Choice:
    """How gradients are to be taken.

    Args:
        asked: "auto" or "on".
        works: what a run takes gradients of; nothing if it takes none.
        device: where.
    """
    works = [work for work in works if work.times > 0]
    if not works:
        return Choice("off", "these attacks take no gradients that could be compiled")
    if asked == "auto":
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            seconds = sum(
                seconds_of(lambda work=work: work.gradient(work.images), device, 1) * work.times  # type: ignore[misc]
                for work in works
            )
        if seconds * SAVES < USUAL * len(works):
            short = f"all gradients together take about {duration(seconds)} here"
            return Choice("off", f"{short}, and compiling would take longer than it saves")
    outcomes = []
    for mode in modes_on(device):
        trials = [tried(work, mode, device) for work in works]
        refused = next((trial.refused for trial in trials if trial.refused), "")
        outcomes.append((mode, _Outcome.of(works, trials), refused))
    usable = [(mode, outcome) for mode, outcome, refused in outcomes if not refused]
    if not usable:
        return Choice("off", outcomes[0][2])
    mode, best = min(usable, key=lambda each: each[1].compiled)
    if asked == "auto" and not best.pays:
        return Choice("off", str(best))
    return Choice(mode, str(best) if asked == "auto" else f"as asked; {best}")


def kept(mode: Mode, works: Sequence[Work], device: torch.device, why: str) -> Choice:
    """The choice of an earlier process; whether it works here is tried."""
    if mode == "off":
        return Choice(mode, why)
    trials = (tried(work, mode, device, rounds=0) for work in works if work.times > 0)
    failed = next((trial.refused for trial in trials if trial.refused), "")
    return Choice(mode, why, failed)


@dataclass(frozen=True)
class _Outcome:
    plain: float
    compiled: float
    compiling: float

    @classmethod
    def of(cls, works: Sequence[Work], trials: Sequence[Trial]) -> _Outcome:
        plain = sum(work.times * trial.plain for work, trial in zip(works, trials, strict=True))
        fast = sum(work.times * trial.compiled for work, trial in zip(works, trials, strict=True))
        return cls(plain, fast, sum(trial.compiling for trial in trials))

    @property
    def pays(self) -> bool:
        gained = self.plain - self.compiled
        return gained > self.compiling and self.plain > WORTHWHILE * self.compiled

    def __str__(self) -> str:
        ratio = self.compiled / self.plain if self.plain else 1.0
        return (
            f"compiled they take {ratio:.2g} times as long as plain here"
            f" ({duration(self.compiled)} instead of {duration(self.plain)}), and compiling takes"
            f" {duration(self.compiling)}"
        )


def mode_in(content: Any) -> Mode:
    """The mode in a results.json; "off" in files of earlier versions."""
    noted = content.get("compile") if isinstance(content, dict) else None
    mode = noted.get("mode") if isinstance(noted, dict) else None
    return mode if mode in ("default", "reduce-overhead") else "off"
