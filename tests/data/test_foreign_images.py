"""Pictures of every mode: read by their meaning, or refused in one line."""

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from robusttrain.core.errors import UserError
from robusttrain.core.preparation import Preparation
from robusttrain.data.decoding import Remark, decode, size_of, suffixes
from robusttrain.data.image_files import ImageFiles, _prepared

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GREY, GREY[::-1], GREY.T], axis=-1)


def read(path, grey=True, white=None):
    """Pixels as int64, and remarks."""
    image, remarks = decode(str(path), grey, white)
    assert image.mode == ("L" if grey else "RGB")
    return np.asarray(image).astype(int), set(remarks)


def saved(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled(tmp_path, ending):
    path = saved(tmp_path / f"a{ending}", GREY.astype(np.uint16) * 257)
    pixels, remarks = read(path)
    assert (pixels == GREY).all()
    assert remarks == {Remark.SIXTEEN}
    assert (read(path, grey=False)[0] == GREY[..., None]).all()


def test_sixteen_bits_big_endian(tmp_path):
    data = (GREY.astype(np.uint16) * 257).astype(">u2")
    image = Image.frombytes("I;16B", (8, 8), data.tobytes())
    assert (read(saved(tmp_path / "a.tif", image))[0] == GREY).all()


def test_twelve_bits_in_sixteen(tmp_path):
    path = saved(tmp_path / "a.png", GREY.astype(np.uint16) * 16)
    assert read(path)[1] == {Remark.SIXTEEN, Remark.NARROW}
    pixels, remarks = read(path, white=4032)
    assert abs(pixels - GREY / 252 * 255).max() <= 0.5
    assert remarks == {Remark.WHITE}


def test_sixteen_bits_with_zero_as_white(tmp_path):
    values = (255 - GREY).astype(np.uint16) * 257
    path = saved(tmp_path / "a.tif", values, tiffinfo={262: 0})
    assert (read(path)[0] == GREY).all()


def test_floats_are_black_at_zero_and_white_at_one(tmp_path):
    path = saved(tmp_path / "a.tif", GREY.astype(np.float32) / 255)
    pixels, remarks = read(path)
    assert (pixels == GREY).all()
    assert remarks == {Remark.FLOAT}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (
            GREY.astype(np.float32),
            r"values from 0 to 252, where black is 0 and white 1: .*--data\.white",
        ),
        (GREY.astype(np.float32) / 255 - 0.1, r"values from -0\.1 "),
        (np.full((8, 8), np.nan, np.float32), "not finite"),
        (
            GREY.astype(np.int32) * 257,
            r"32-bit integers, and nothing says .* white: .*--data\.white",
        ),
    ],
)
def test_values_without_a_meaning_are_refused(tmp_path, values, why):
    path = saved(tmp_path / "a.tif", values)
    with pytest.raises(UserError, match=rf"^{path} h[oa]\w+ .*{why}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_white_gives_values_a_meaning(tmp_path, kind):
    path = saved(tmp_path / "a.tif", GREY.astype(kind) * 257)
    assert (read(path, white=65535)[0] == GREY).all()
    with pytest.raises(UserError, match="white 255"):
        read(path, white=255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif"])
def test_exif_orientation_turns_upright(tmp_path, orientation, ending):
    turns = Image.Transpose
    # What a camera held like that would have stored.
    stored = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    upright = Image.fromarray(np.kron(COLOUR[:4, :6], np.ones((8, 8, 1), np.uint8)))
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}
    path = saved(tmp_path / f"a{ending}", image, exif=exif, **options.get(ending, {}))
    pixels, remarks = read(path, grey=False)
    assert pixels.shape == (32, 48, 3)
    assert abs(pixels - np.asarray(upright)).mean() < 2
    assert size_of(str(path)) == (48, 32)
    if ending != ".tif":  # Pillow turns those by itself
        assert remarks == ({Remark.TURNED} if orientation > 1 else set())


def test_broken_exif_is_upright(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", GREY)
    monkeypatch.setattr(Image.Image, "getexif", lambda self: 1 / 0)
    pixels, remarks = read(path)
    assert (pixels == GREY).all()
    assert remarks == {Remark.NO_EXIF}


def palette(transparent):
    image = Image.fromarray(np.repeat([[0, 1]], 8, 0).repeat(4, 1).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 100, 100, 100])
    return image, {"transparency": transparent}


@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_transparent_palette_colours_lie_over_white(tmp_path, ending):
    image, options = palette(0)
    pixels, remarks = read(saved(tmp_path / f"a{ending}", image, **options))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 100).all()
    assert remarks == {Remark.TRANSPARENT}


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (200, 0, 0, 0), 255),
        ("RGBA", (0, 0, 0, 51), 204),
        ("LA", (10, 0), 255),
        ("LA", (10, 255), 10),
    ],
)
def test_hidden_colours_stay_hidden(tmp_path, mode, colour, expected):
    path = saved(tmp_path / "a.png", Image.new(mode, (8, 8), colour))
    pixels, remarks = read(path, grey=False)
    assert (pixels == expected).all()
    assert remarks == ({Remark.TRANSPARENT} if colour[-1] < 255 else set())


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_transparent_colour(tmp_path, mode):
    colour = 7 if mode == "L" else (7, 7, 7)
    path = saved(tmp_path / "a.png", Image.new(mode, (8, 8), colour), transparency=colour)
    assert (read(path)[0] == 255).all()


def test_a_transparent_value_of_sixteen_bits(tmp_path):
    path = saved(tmp_path / "a.png", GREY.astype(np.uint16) * 257, transparency=0)
    pixels, remarks = read(path)
    assert pixels[0, 0] == 255
    assert (pixels.ravel()[1:] == GREY.ravel()[1:]).all()
    assert Remark.TRANSPARENT in remarks


def test_an_opaque_alpha_channel_is_no_news(tmp_path):
    alpha = np.dstack([COLOUR, np.full((8, 8), 255, np.uint8)])
    pixels, remarks = read(saved(tmp_path / "a.png", alpha), grey=False)
    assert (pixels == COLOUR).all()
    assert not remarks


def test_two_colours(tmp_path):
    bits = Image.fromarray(GREY > 100)
    for name in ("a.png", "a.tif", "a.pbm"):
        assert (read(saved(tmp_path / name, bits))[0] == np.where(GREY > 100, 255, 0)).all()


@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_cmyk(tmp_path, ending):
    """Also as Adobe writes it into JPEG, upside down."""
    path = saved(tmp_path / f"a{ending}", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    pixels, remarks = read(path, grey=False)
    assert abs(pixels - [255, 0, 0]).max() < 6
    assert remarks == {Remark.CMYK}


def test_colour_profiles_are_told_of_unless_they_are_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert not read(saved(tmp_path / "a.png", GREY, icc_profile=srgb))[1]
    pixels, remarks = read(saved(tmp_path / "b.png", GREY, icc_profile=other))
    assert (pixels == GREY).all()
    assert remarks == {Remark.PROFILE}


@pytest.mark.parametrize("ending", [".gif", ".png", ".webp", ".tif"])
def test_the_first_of_several_frames(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (40, 200)]
    options = {"save_all": True, "append_images": frames[1:]}
    path = saved(
        tmp_path / f"a{ending}",
        frames[0],
        **options,
        **({"lossless": True} if ending == ".webp" else {}),
    )
    pixels, remarks = read(path)
    assert (pixels == 40).all()
    assert remarks == {Remark.FRAMES}


@pytest.mark.parametrize("ending", [".jfif", ".gif", ".webp", ".avif", ".jpe", ".bmp", ".JPG"])
def test_formats(tmp_path, ending):
    if ending.lower() not in suffixes():
        pytest.skip("this Pillow does not read it")
    kind = "JPEG" if ending.startswith(".j") else None
    path = saved(tmp_path / f"a{ending}", np.full((8, 8), 100, np.uint8), format=kind)
    assert abs(read(path)[0] - 100).max() <= 1


def test_the_content_counts_and_not_the_name(tmp_path):
    path = tmp_path / "a.png"
    saved(path, GREY, format="BMP")
    assert (read(path)[0] == GREY).all()
    # Pillow would start Ghostscript for this one.
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"cannot read the image .*a\.png \(cannot identify"):
        read(path)


def test_a_decompression_bomb_is_refused_and_a_large_image_is_none(tmp_path, monkeypatch, recwarn):
    path = saved(tmp_path / "a.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    assert ImageFiles([str(path)], 8, preparation=Preparation(8, 8)).load().shape == (1, 3, 8, 8)
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(
        UserError, match=r"cannot read the image .*decompression bomb.*replace or remove it"
    ):
        ImageFiles([str(path)], 8, preparation=Preparation(8, 8)).load()


@pytest.mark.parametrize(
    "shape", [(48, 64), (64, 48), (500, 334), (301, 300), (77, 100), (900, 224), (40, 40)]
)
@pytest.mark.parametrize(
    ("resize", "by"),
    [(32, "bicubic"), (36, "bilinear"), (37, "bicubic"), (39, "lanczos"), (40, "nearest")],
)
def test_pictures_are_those_of_torchvisions_evaluation(tmp_path, shape, resize, by):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(pixels))
    theirs = Compose([Resize(resize, InterpolationMode(by)), CenterCrop(32), PILToTensor()])
    ours = ImageFiles([str(path)], 32, preparation=Preparation(32, resize, by))
    assert torch.equal(ours.load()[0], theirs(Image.open(path)))


def test_a_strip_is_resized_without_all_of_its_length(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = np.asarray(_prepared(Image.fromarray(pixels), Preparation(16, 20))).astype(int)
    monkeypatch.setattr("robusttrain.data.image_files._LARGE", 0)
    cut = np.asarray(_prepared(Image.fromarray(pixels), Preparation(16, 20)))
    assert abs(cut - whole).max() <= 1
    monkeypatch.undo()
    strip = Image.new("L", (60_000, 1), 9)  # 3 million million pixels, resized as a whole
    assert np.asarray(_prepared(strip, Preparation(8, 7_000))).tolist() == [[9] * 8] * 8


def test_what_was_decided_is_said_once_with_its_number(tmp_path, caplog):
    clear = Image.new("LA", (8, 8), (0, 0))
    paths = [str(saved(tmp_path / f"{n}.png", clear if n % 2 else GREY)) for n in range(40)]
    files = ImageFiles(paths, 8)
    with caplog.at_level(logging.WARNING, "robusttrain.data"):
        files.load()
        files.load()
    expected = f"20 of 40 images {Remark.TRANSPARENT.value}; the first: {paths[1]}"
    assert files.notes == caplog.messages == [expected]


def test_batches_say_it_when_they_meet_it(tmp_path):
    paths = [str(saved(tmp_path / f"{n}.png", GREY)) for n in range(3)]
    saved(paths[2], Image.new("LA", (8, 8), (0, 0)))
    files = ImageFiles(paths, 8)
    files[torch.tensor([0, 1])]
    assert not files.notes
    for _ in range(2):
        files[torch.tensor([2, 0])]
    assert files.notes == [f"some images {Remark.TRANSPARENT.value}; the first: {paths[2]}"]


def test_every_truncation_is_refused_in_one_line(tmp_path):
    for ending in (".png", ".jpg", ".gif", ".webp", ".bmp"):
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, Image.registered_extensions()[ending])
        whole = buffer.getvalue()
        for part in (0, 1, 10, len(whole) // 2):
            path = tmp_path / f"a{ending}"
            path.write_bytes(whole[:part])
            with pytest.raises(
                UserError, match=rf"cannot read the image {path} \(.*replace"
            ) as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_what_a_square_leaves_out_is_said(tmp_path):
    """Two of three pictures lose their ends; one that is resized whole is no news."""
    sizes = [(8, 8), (8, 12), (20, 10)]
    paths = [saved(tmp_path / f"{i}.png", Image.new("L", size)) for i, size in enumerate(sizes)]
    files = ImageFiles([str(path) for path in paths], 6, channels=1, preparation=Preparation(6, 6))
    assert files.load().shape == (3, 1, 6, 6)
    assert files.notes == [f"2 of 3 images {Remark.OBLONG.value}; the first: {paths[1]}"]
