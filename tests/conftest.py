"""Models with known answers, and images to run them on."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from benchmarks import forked
from robusttrain.commands import entry
from robusttrain.core.rng import Rng

#: Folders whose files take longest.
LONG = ("studies", "audit", "cli", "callbacks")
#: These have a process of their own: torch knows the pretended device for good, and a process that
#: knows an accelerator can no longer fork once it has differentiated anything.
ALONE = Path(__file__).parent / "pretend"


def pytest_ignore_collect(collection_path, config):
    """The pretend device's tests run where the command line names them, and nowhere else."""
    if collection_path != ALONE:
        return None
    named = (Path(each.partition("::")[0]).resolve() for each in config.args)
    return None if any(ALONE in (path, *path.parents) for path in named) else True


def pytest_collection_modifyitems(items):
    """Long files first: with one file to a worker at a time, a long one at the end leaves the
    others idle.
    """
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(Path(item.path).parent.name, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell that starts the tests in the background of a script has them ignore Ctrl-C, which
    some of them send.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make_images(count: int = 4, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    """Seeded images (B, C, H, W), uniform in [0.2, 0.8]: small perturbations never meet the box."""
    return 0.2 + 0.6 * torch.rand(
        count, channels, side, side, generator=torch.Generator().manual_seed(seed)
    )


class Linear(nn.Module):
    """z = W x + b: every best perturbation is known."""

    def __init__(
        self, classes: int = 3, channels: int = 3, side: int = 8, seed: int = 0, scale: float = 0.2
    ) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(
            scale * torch.randn(classes, channels * side * side, generator=rng)
        )
        self.bias = nn.Parameter(scale * torch.randn(classes, generator=rng))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


class RandomLinear(Linear):
    """A linear model on images with noise of their own: takes streams, as defended classifiers
    do.
    """

    takes_rng = True

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        rng = Rng.from_global(len(images), images.device) if rng is None else rng
        return super().forward(images * rng.uniform((1, 1, 1), 0.2, 1.8))


class Curved(nn.Module):
    """A small smooth network without batch norm: its gradient differs from point to point."""

    def __init__(self, classes: int = 4, channels: int = 3, side: int = 8, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        pixels = channels * side * side
        self.first = nn.Parameter(3 * torch.randn(16, pixels, generator=rng) / pixels**0.5)
        self.second = nn.Parameter(torch.randn(classes, 16, generator=rng))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh((images.flatten(1) - 0.5) @ self.first.T) @ self.second.T


class Counting(nn.Module):
    """Counts the images that pass with and without a gradient, and keeps the streams' keys.

    The notes are kept outside: attributes of a module are as before after an attack.
    """

    takes_rng = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.random = bool(getattr(model, "random", getattr(model, "takes_rng", False)))
        self.notes = SimpleNamespace(gradients=0, queries=0, keys=[])

    gradients = property(
        lambda self: self.notes.gradients,
        lambda self, count: setattr(self.notes, "gradients", count),
    )
    queries = property(
        lambda self: self.notes.queries, lambda self, count: setattr(self.notes, "queries", count)
    )
    keys = property(
        lambda self: self.notes.keys, lambda self, keys: setattr(self.notes, "keys", keys)
    )

    def forward(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            self.notes.gradients += len(images)
        else:
            self.notes.queries += len(images)
        if rng is not None:
            self.notes.keys += rng.keys.tolist()
        return (
            self.model(images, rng)
            if getattr(self.model, "takes_rng", False)
            else self.model(images)
        )


def make_convnet(classes: int = 3, channels: int = 3, seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm with statistics of its own, dropout, and a linear layer; for images
    of any size.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(32, classes),
    )
    with torch.no_grad():
        network.train()(torch.rand(16, channels, 8, 8))
    network.in_channels = channels  # lets fast_copy verify that it may fold batch norm
    return network.eval()


def make_streams(count: int = 4, seed: int = 0) -> Rng:
    return Rng.for_images(seed, torch.arange(count))


@pytest.fixture
def images():
    return make_images


@pytest.fixture
def streams():
    return make_streams


class Unsure(nn.Module):
    """Class 1 where the sum of 4 x 4 pixels exceeds that of mid-grey by 0.3, up to noise of 0.4:
    0.075 away from mid-grey, which is wrong in 23 % of draws.
    """

    takes_rng = True
    random = True

    def forward(self, images, rng):
        sure = (images - 0.5).flatten(1).sum(1) - 0.3
        off = sure + 0.4 * rng.normal((1,)).to(images.dtype)[:, 0]
        return torch.stack([-off, off], 1)


@pytest.fixture
def linear():
    return Linear


@pytest.fixture
def random_linear():
    return RandomLinear


@pytest.fixture
def unsure():
    return Unsure()


@pytest.fixture
def curved():
    return Curved


@pytest.fixture
def counting():
    return Counting


@pytest.fixture
def convnet():
    return make_convnet


@pytest.fixture(scope="session")
def patterns():
    """A network that tells four coloured patterns apart, behind enough noise to be attackable; and
    test images that it gets right.
    """
    rng = torch.Generator().manual_seed(0)
    colours = torch.rand(4, 3, 8, 8, generator=rng)
    labels = torch.randint(4, (456,), generator=rng)
    noise = 0.3 * torch.randn(456, 3, 8, 8, generator=rng)
    images = (0.5 + 0.3 * (colours[labels] - 0.5) + noise).clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(128, 4),
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:256]), labels[:256]).backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    right = model(images[256:]).argmax(1) == labels[256:]
    return model, images[256:][right], labels[256:][right]


# The command line: as a process of its own, and in this process (a few seconds cheaper).

# Networks this small gain nothing from threads, and lose much where the cores are busy.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CONF = ROOT / "tests" / "conf"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def brief(script, arguments):
    """The command line, with defaults that suit most tests: no audit, which takes longer than what
    they are about, and no precision that a measurement decides.
    """
    words = list(map(str, arguments))
    if script != "evaluate.py" or {"--models", "--config", "--again"} & {*words}:
        return words
    fast = [] if {"--audit", "--strict"} & {*words} else ["--audit", "false"]
    return [*fast, *([] if "--precision" in words else ["--precision", "float32"]), *words]


@pytest.fixture(scope="session")
def run_script():
    """Runs ``python SCRIPT ...`` from the repository's root: (code, out, err)."""

    def run(script, *arguments, timeout=600):
        done = subprocess.run(
            [sys.executable, script, *brief(script, arguments)],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def start_forked(tmp_path_factory):
    """Starts a process that does what ``python SCRIPT ...`` does, but for the imports, which take
    seconds: (process, files of what it prints and of its errors). The caller ends it.
    """

    def start(script, *arguments):
        told = [str(tmp_path_factory.mktemp("forked") / name) for name in ("out", "err")]
        words = (script, brief(script, arguments), str(ROOT), *told)
        process = forked.imported_once().Process(target=forked.become, args=words)
        process.start()
        return SimpleNamespace(process=process, out=Path(told[0]), err=Path(told[1]))

    return start


@pytest.fixture(scope="session")
def run_forked(start_forked):
    """As `run_script`, without the imports: (code, out, err)."""

    def run(script, *arguments, timeout=600):
        started = start_forked(script, *arguments)
        started.process.join(timeout)
        code = started.process.exitcode
        if code is None:
            started.process.kill()
            pytest.fail(f"{script} runs for more than {timeout} s: {started.err.read_text()}")
        return SimpleNamespace(code=code, out=started.out.read_text(), err=started.err.read_text())

    return run


@pytest.fixture(scope="session")
def run_here():
    """Runs what ``python SCRIPT ...`` runs, in this process, for fixtures that many tests share:
    (code, out, err).
    """

    def run(script, *arguments):
        out, err, words = io.StringIO(), io.StringIO(), brief(script, arguments)
        with (
            contextlib.chdir(ROOT),
            mock.patch.object(sys, "argv", [script, *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            entry.run(script.removesuffix(".py"), words, script)
        return SimpleNamespace(code=ended.value.code, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture(scope="session")
def start_script():
    """Starts ``python SCRIPT ...`` from the repository's root and leaves it running; the caller
    ends it.
    """

    def start(script, *arguments):
        command = [sys.executable, script, *brief(script, arguments)]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **silent)

    return start


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs what ``python SCRIPT ...`` runs, in this process: (code, out, err)."""
    monkeypatch.chdir(ROOT)

    def run(script, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [script, *brief(script, arguments)])
        with pytest.raises(SystemExit) as ended:
            entry.run(script.removesuffix(".py"), sys.argv[1:], script)
        found = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=found.out, err=found.err)

    return run


@pytest.fixture(scope="session")
def trained(run_here, tmp_path_factory):
    """One run of train.py, digits behind the adversarial transformation: folder, best and last
    checkpoint, output.
    """
    folder = tmp_path_factory.mktemp("trained")
    places = ["--checkpoints", folder / "checkpoints", "--logs", folder / "logs"]
    done = run_here("train.py", "--config", CONF / "advtransform.yaml", *places)
    assert done.code == 0, done.err
    (best,) = (folder / "checkpoints").rglob("best.ckpt")
    return SimpleNamespace(
        folder=folder, best=best, last=best.with_name("last.ckpt"), out=done.out, err=done.err
    )
