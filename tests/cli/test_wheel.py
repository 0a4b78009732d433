"""The wheel alone, in an environment and a folder of its own: a command that works."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and installed where only packages from elsewhere are at hand.

    Its dependencies come from this very environment: what is tested is ours, and no registry need
    be there.
    """
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wheel = folder / done.stdout.splitlines()[-1]
    venv.create(folder / "venv", with_pip=False)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        scripts = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        points = archive.read(scripts[0]).decode()
    assert "robusttrain = robusttrain.commands.entry:console" in points
    # As pip would write it.
    script = folder / "venv" / "bin" / "robusttrain"
    script.write_text(
        f"#!{folder / 'venv' / 'bin' / 'python'}\n"
        "from robusttrain.commands.entry import console\nconsole()\n"
    )
    script.chmod(0o755)
    others = [path for path in sys.path if "site-packages" in path]
    (packages / "others.pth").write_text("\n".join(others))
    return script


def run(script, folder, *arguments):
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.run(
        [str(script), *map(str, arguments)],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_from_an_empty_folder_to_a_result(installed, tmp_path):
    """Of a model that comes along, under an attack of one's own; then one of one's own is
    trained.
    """
    (tmp_path / "configs" / "attack").mkdir(parents=True)
    (tmp_path / "configs" / "attack" / "mine.yaml").write_text(
        "like: bpda-eot\ninit_args: {steps: 2}\n"
    )
    assert "digits-g" in run(installed, tmp_path, "list", "models").stdout
    few = ("--images", 4, "--attack.gradient.draws", 1, "--audit", "false")
    attacked = run(installed, tmp_path, "evaluate", "--attack", "mine", *few)
    assert attacked.returncode == 0, attacked.stderr
    assert "taking digits-g" in attacked.stderr
    results = json.loads((tmp_path / "results" / "newest" / "results.json").read_text())
    assert results["attacks"]["mine"]["gradient_evaluations_per_image"] == 2
    trained = run(
        *(installed, tmp_path, "train", "--model", "mlp", "--trainer.max_epochs", 1),
        *("--trainer.limit_train_batches", 2, "--robust.every", 0, "--pictures.images", 0),
    )
    assert trained.returncode == 0, trained.stderr
    assert "attack with robusttrain evaluate" in trained.stderr
    said = trained.stderr + attacked.stderr
    assert str(ROOT / "robusttrain") not in said
    assert "pytorch_lightning" not in said  # its advice is about scripts of one's own


@pytest.mark.long
def test_it_says_what_is_wrong(installed, tmp_path):
    done = run(installed, tmp_path, "evaluate", "--checkpoints", "nowhere")
    assert done.returncode == 2
    assert "train one (robusttrain train --defense advtransform)" in done.stderr
