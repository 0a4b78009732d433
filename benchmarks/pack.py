"""What a machine without a network needs for `benchmarks/on_gpu.sh`, in one folder under 64 MB.

    python -m benchmarks.pack --root data/cifar10-jpeg --f_b FILE --training --output pack

A wheel of this package, test images as ``images/test/<class>/``, the weights of f_b, and
torchattacks where it is installed, which is plain Python. ``--training`` adds the training images,
in ``train.tar.xz``. ``pack.json`` names the commit.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from robusttrain.core.errors import OptionError, UserError
from robusttrain.storage.files import may_write

MOST = 64 * 10**6
HERE = Path(__file__).resolve().parent.parent


def copy_images(root: Path, folder: Path, count: int) -> int:
    """The first test images of each class, ``count`` in all or a few less; how many it took."""
    classes = sorted(each for each in (root / "test").glob("*") if each.is_dir())
    if not classes:
        raise OptionError("--root", str(root), "has no test/<class>/; give an image folder")
    taken = 0
    for each in classes:
        chosen = sorted(path for path in each.iterdir() if path.is_file())[: count // len(classes)]
        (folder / each.name).mkdir(parents=True)
        for path in chosen:
            shutil.copyfile(path, folder / each.name / path.name)
        taken += len(chosen)
    return taken


def copy_installed(name: str, folder: Path) -> str | None:
    """An installed distribution of plain Python; its version, None where it is not installed."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    for each in distribution.files or []:
        if ".." not in each.parts and each.suffix != ".pyc":
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(each.locate()), folder / each)
    return distribution.version


def commit() -> str | None:
    """The commit of this working tree; None outside a repository."""
    command = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def wheel(folder: Path) -> None:
    """Build the package's wheel into a folder."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(HERE)]
    subprocess.run(command, check=True)


def empty(value: str) -> Path:
    """The ``type`` of ``--output``: a folder, new or empty, that can be written to.

    Raises:
        ArgumentTypeError: it is none.
    """
    folder = Path(value)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise argparse.ArgumentTypeError(f"{value}: is not empty: give a new folder")
    try:
        return may_write(folder, "folder")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    """Parse, copy, weigh."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="image folder with test/")
    parser.add_argument("--f_b", type=Path, required=True, help="weights of a vgg_small")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--training", action="store_true", help="training images, too")
    parser.add_argument("--output", type=empty, required=True, help="folder, new or empty")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    taken = copy_images(arguments.root, output / "images" / "test", arguments.images)
    shutil.copyfile(arguments.f_b, output / "f_b.pth")
    if arguments.training:
        with tarfile.open(output / "train.tar.xz", "w:xz") as archive:
            archive.add(arguments.root / "train", "train")
    version = copy_installed("torchattacks", output / "peers")
    wheel(output)
    facts = {"commit": commit(), "images": taken, "torchattacks": version}
    (output / "pack.json").write_text(json.dumps(facts) + "\n")
    size = sum(each.stat().st_size for each in output.rglob("*") if each.is_file())
    if size > MOST:
        raise UserError(
            f"--output {output}: {size / 1e6:.1f} MB, over 64; fewer --images, or no --training"
        )
    print(f"{output}: {taken} images, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
