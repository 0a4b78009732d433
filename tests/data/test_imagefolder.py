"""Folders of images: classes by folder, sizes, corrupt files, and images that do not fit in
memory.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from robusttrain.core.errors import OptionError, UserError
from robusttrain.core.preparation import Preparation
from robusttrain.data import Facts, ImageFolder


def save(path, value, width=8, height=8):
    """A PNG of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Three classes, the second of them empty; 40 train and 6 test images."""
    for split, count in (("train", 20), ("test", 3)):
        for value, name in ((0, "ant"), (100, "cat")):
            for number in range(count):
                save(tmp_path / split / name / f"{number:02}.png", value + number)
            (tmp_path / split / name / "notes.txt").write_text("not an image")
        (tmp_path / split / "bee").mkdir()
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_layout(root):
    data = ImageFolder(root=str(root))
    assert data.facts() == Facts(3, 3, 8)
    data.setup()
    assert data.class_names == ["ant", "bee", "cat"]
    assert data._train.images.shape == (40, 3, 8, 8)
    assert data._train.images.dtype == torch.uint8
    assert data._train.images.untyped_storage().nbytes() == 40 * 3 * 8 * 8
    assert data._train.images[:, 1, 3, 3].tolist() == [*range(20), *range(100, 120)]
    assert data._train.labels.tolist() == [0] * 20 + [2] * 20
    assert data._test.labels.tolist() == [0] * 3 + [2] * 3


def test_a_few_validation_batches_hold_several_classes(root):
    data = ImageFolder(root=str(root), validation=0.5, batch_size=8)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert set(batches[0].labels.tolist()) == {0, 2}
    seen = torch.cat([batch.indices for batch in batches])
    assert sorted(seen.tolist()) == sorted(data._validation.subset.tolist())
    assert torch.equal(
        seen, torch.cat([batch.indices for batch in data.val_dataloader()])
    )  # in every epoch


def test_val_serves_as_test_and_is_enough(root):
    (root / "test").rename(root / "val")
    whole = ImageFolder(root=str(root))
    whole.setup("test")
    assert len(whole._test) == 6
    (root / "train").rename(root / "elsewhere")
    data = ImageFolder(root=str(root))
    data.setup("test")
    assert data.facts() == Facts(3, 3, 8)
    assert data._test.labels.tolist() == [0] * 3 + [2] * 3
    with pytest.raises(
        UserError, match=r"no train images in .*looked for train/<class>/.*--data\.root DIR"
    ):
        data.setup("fit")


def test_classes_are_numbered_as_in_training(root):
    (root / "test" / "ant").rename(root / "ant")
    data = ImageFolder(root=str(root))
    data.setup("test")
    assert data._test.labels.tolist() == [2] * 3
    (root / "ant").rename(root / "test" / "dog")
    with pytest.raises(UserError, match=r"dog is a class that .*train does not have"):
        ImageFolder(root=str(root)).setup("test")


def test_lazy_images_equal_those_in_memory(root):
    held, lazy = ImageFolder(root=str(root)), ImageFolder(root=str(root), memory_limit_gib=0.0)
    for data in (held, lazy):
        data.setup()
    assert not isinstance(lazy._train.images, torch.Tensor)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for expected, found in zip(getattr(held, name)(), getattr(lazy, name)(), strict=True):
            for left, right in zip(expected, found, strict=True):
                assert left.dtype == right.dtype
                assert torch.equal(left, right)
    assert torch.equal(held.validation_images(3).images, lazy.validation_images(3).images)


def test_image_size_resizes_and_crops_the_centre(root):
    halves = np.zeros((10, 30, 3), np.uint8)
    halves[:, 10:20] = 200  # the square in the centre
    Image.fromarray(halves).save(root / "train" / "bee" / "wide.png")
    Image.fromarray(halves.transpose(1, 0, 2)).save(root / "train" / "bee" / "tall.png")
    data = ImageFolder(root=str(root), image_size=5)
    data.setup("fit")
    assert data.facts() == Facts(3, 3, 5)
    images = data._train.images[data._train.labels == 1]
    assert images.shape == (2, 3, 5, 5)
    assert (images[0, :, 1:-1] > 190).all()  # tall: bicubic rings at the border
    assert (images[1, :, :, 1:-1] > 190).all()


def test_grey(root):
    data = ImageFolder(root=str(root), channels=1)
    data.setup("test")
    assert data.facts() == Facts(3, 1, 8)
    assert data._test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]


def test_first_image_of_another_size_is_named(root):
    for name in ("18", "03"):
        save(root / "train" / "cat" / f"{name}.png", 0, width=9)
    with pytest.raises(
        UserError,
        match=r"03\.png is 9x8 pixels, where the images must be 8x8: give --data\.image_size N",
    ):
        ImageFolder(root=str(root)).setup("fit")


def test_images_that_are_no_squares_need_a_size(root):
    save(root / "train" / "ant" / "00.png", 0, width=9)
    with pytest.raises(
        UserError, match=r"00\.png is 9x8 pixels, .* squares: give --data\.image_size N"
    ):
        ImageFolder(root=str(root)).facts()


@pytest.mark.parametrize("content", [b"", b"no image", None])
@pytest.mark.parametrize("name", ["00.png", "07.png"])
def test_corrupt_file_is_named(root, content, name):
    path = root / "train" / "ant" / name
    path.write_bytes(path.read_bytes()[:45] if content is None else content)
    with pytest.raises(
        UserError, match=rf"cannot read the image .*ant.{name} \(.*\): replace or remove it"
    ):
        ImageFolder(root=str(root)).setup("fit")


def test_missing_data(tmp_path):
    with pytest.raises(UserError) as caught:
        ImageFolder(root=str(tmp_path / "none")).facts()
    message = str(caught.value)
    assert str(tmp_path / "none") in message
    assert "train/<class>/" in message
    assert "--data.root DIR" in message
    (tmp_path / "train" / "ant").mkdir(parents=True)
    for image_size in (None, 8):
        with pytest.raises(UserError, match=r"no image in .*train"):
            ImageFolder(root=str(tmp_path), image_size=image_size).setup("fit")


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 0), ("channels", 2), ("memory_limit_gib", -1.0)]
)
def test_options_that_cannot_work_are_named(option, value):
    with pytest.raises(OptionError, match=f"^{option} = "):
        ImageFolder(**{option: value})


def test_a_border_is_left_out_by_the_given_interpolation(root):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = root / "train" / "bee" / "wide.png"
    Image.fromarray(pixels).save(path)
    steps = Resize(12, InterpolationMode.BILINEAR), CenterCrop(8), PILToTensor()
    data = ImageFolder(root=str(root), image_size=8, resize=12, interpolation="bilinear")
    data.setup("fit")
    images = data._train.images[data._train.labels == 1]
    assert torch.equal(images[0], Compose(steps)(Image.open(path)))
    assert data.preparation == Preparation(8, 12, "bilinear")
    assert ImageFolder(root=str(root)).preparation is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"resize": 9}, r"resize = 9: nothing is resized without image_size"),
        ({"interpolation": "bilinear"}, r"interpolation = 'bilinear': nothing is resized without"),
        ({"resize": 7, "image_size": 8}, r"resize = 7: must be at least image_size, 8"),
        ({"interpolation": "cubic", "image_size": 8}, r"interpolation"),
    ],
)
def test_a_preparation_that_cannot_be_is_refused(root, options, match):
    with pytest.raises(OptionError, match=match):
        ImageFolder(root=str(root), **options)
