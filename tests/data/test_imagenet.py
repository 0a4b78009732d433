"""ImageNet's validation images: classes by WordNet id, resizing and cropping, and what is said
where they are not.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from robusttrain.core.errors import OptionError, UserError
from robusttrain.data import Facts, ImageNet
from robusttrain.data.image_files import ImageFiles

TENCH, GOLDFISH, SHARK, TISSUE = (
    "n01440764",
    "n01443537",
    "n01484850",
    "n15075141",
)  # 0, 1, 2 and 999


def save(path, value, width=12, height=12):
    """A JPEG of one colour, which JPEG keeps as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Four of the class folders, the second of them empty; five images."""
    for number, (wnid, name) in enumerate(
        (
            (TENCH, "b.JPEG"),
            (TENCH, "a.JPEG"),
            (SHARK, "c.jpg"),
            (TISSUE, "d.JPEG"),
            (TISSUE, "e.JPEG"),
        )
    ):
        save(tmp_path / "val" / wnid / name, 10 * number)
    (tmp_path / "val" / GOLDFISH).mkdir()
    (tmp_path / "val" / TENCH / "notes.txt").write_text("not an image")
    return tmp_path


def loaded(root, **options):
    data = ImageNet(root=str(root), image_size=options.pop("image_size", 8), **options)
    data.setup("test")
    return data


def test_layout(root):
    data = loaded(root)
    assert data.facts() == Facts(1000, 3, 8)
    assert (data.num_classes, data.channels, data.image_size) == (1000, 3, 8)
    assert [data.class_names[index] for index in (0, 1, 2, 999)] == [
        "tench",
        "goldfish",
        "great white shark",
        "toilet tissue",
    ]
    (batch,) = data.test_dataloader()
    assert batch.labels.tolist() == [0, 0, 2, 999, 999]
    assert batch.images.shape == (5, 3, 8, 8)
    assert batch.images[:, 1, 4, 4].tolist() == [10, 0, 20, 30, 40]


def test_images_are_decoded_when_they_are_needed(root, monkeypatch):
    decoded = []
    decode = ImageFiles._decode
    monkeypatch.setattr(
        ImageFiles, "_decode", lambda self, path: decoded.append(path) or decode(self, path)
    )
    data = loaded(root, batch_size=2)
    data.limit_test(3, seed=0)
    assert not decoded
    assert sum(len(batch.labels) for batch in data.test_dataloader()) == 3
    assert len(set(decoded)) == len(decoded) == 3


def test_subsets_and_indices(root):
    data = loaded(root)
    chosen = []
    for count in (2, 3):
        data.limit_test(count, seed=1)
        (batch,) = data.test_dataloader()
        chosen.append(set(batch.indices.tolist()))
    assert chosen[0] < chosen[1]
    batch = data.test_images(torch.tensor([4, 0]))
    assert batch.labels.tolist() == [999, 0]
    torch.testing.assert_close(batch.images[:, 0, 0, 0], torch.tensor([40.0, 10.0]) / 255)
    with pytest.raises(OptionError, match="images = 6: the test split has 5 images"):
        data.limit_test(6, seed=0)


def test_shorter_side_is_resized_and_the_centre_cropped(root):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:40] = 200  # half of the height, in the centre
    Image.fromarray(pixels).save(root / "val" / TENCH / "0.png")
    whole, inner = (
        loaded(root, resize=resize).test_images(torch.tensor([0])).images[0, 0]
        for resize in (None, 16)
    )
    # Without a border all of the height is there: 2 + 4 + 2 pixels. Resized to twice the crop, the
    # square fills it.
    assert (whole[3:5, 3:5] > 0.75).all()
    assert (whole[:, 0] < 0.1).all()
    assert (inner[1:-1, 1:-1] > 0.7).all()
    assert whole.shape == inner.shape == (8, 8)
    assert loaded(root, image_size=10).facts().image_size == 10


def test_resizing_is_bicubic_and_antialiased(root):
    pixels = torch.randint(
        0, 256, (3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(root / "val" / TENCH / "0.png")
    ours = loaded(root).test_images(torch.tensor([0])).images
    expected = torch.nn.functional.interpolate(
        pixels[None].float(), size=(8, 8), mode="bicubic", antialias=True
    )
    assert (
        255 * ours - expected.clamp(0, 255)
    ).abs().max() < 1.5  # 8 bits between the two directions


@pytest.mark.parametrize("folder", [None, "val", "train/n01440764"])
def test_missing_data_name_the_layout(tmp_path, folder):
    if folder:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"no ImageNet images in .*val/<wnid>/\*\.JPEG.*--data\.root DIR"
    ) as caught:
        ImageNet(root=str(tmp_path)).facts()
    assert "\n" not in str(caught.value)


def test_folders_without_images_name_the_layout(tmp_path):
    (tmp_path / "val" / TENCH).mkdir(parents=True)
    with pytest.raises(UserError, match="no ImageNet images in"):
        loaded(tmp_path)


def test_a_folder_that_is_no_class_is_named(root):
    (root / "val" / "tench").mkdir()
    with pytest.raises(UserError, match=r"val.tench is no class of ImageNet: .*--data imagefolder"):
        ImageNet(root=str(root)).facts()


def test_training_is_refused_with_the_way_to_do_it(root):
    with pytest.raises(
        UserError, match=r"evaluation only.*--data imagefolder --data\.root .* --data\.image_size 8"
    ):
        ImageNet(root=str(root), image_size=8).setup("fit")


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 0), ("resize", 223), ("batch_size", 0)]
)
def test_options_that_cannot_work_are_named(option, value):
    with pytest.raises(OptionError, match=f"^{option} = {value}: "):
        ImageNet(**{option: value})
