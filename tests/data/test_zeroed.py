"""JPEG files of which a part was overwritten with zeros are refused where that can be told."""

import io

import numpy as np
import pytest
from PIL import Image

from robusttrain.core.errors import UserError
from robusttrain.data.decoding import decode
from robusttrain.data.zeroed import RUN, zeroed


def jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def with_hole(content, size, end=b"\xff\xd9"):
    """Zeros in the middle of the scan, whose end stays."""
    middle = (content.index(b"\xff\xda") + len(content)) // 2
    return content[:middle] + bytes(size) + content[middle + size : -2] + end


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0}], ids=str)
def test_a_hole_is_refused_and_pillow_decodes_it(shape, options, tmp_path):
    content = jpeg(noise(*shape), **options)
    assert zeroed(content) == 0
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    decode(str(path), grey=False)
    path.write_bytes(with_hole(content, 300))
    assert RUN < 290 <= zeroed(path.read_bytes()) <= 310
    with Image.open(path) as file:
        file.load()  # without a word
    with pytest.raises(UserError, match=r"a\.jpg holds 30\d bytes of zeros where its pixels"):
        decode(str(path), grey=False)


def test_what_ends_too_early_pillow_tells(tmp_path):
    content, path = jpeg(noise(64, 64)), tmp_path / "a.jpg"
    middle = len(content) // 2
    for broken in (content[:middle], content[:-2], content[:middle] + bytes(middle)):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.jpg"):
            decode(str(path), grey=False)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}], ids=str)
def test_flat_pictures_pass(options):
    """With codes of their own, most of their scan is zeros; 1,024 blocks are hundreds of bytes."""
    flat = np.full((512, 512), 255, np.uint8)
    assert zeroed(jpeg(flat, **options)) == 0
    flat[:8, :8] = noise(8, 8)
    assert zeroed(jpeg(flat, **options)) == 0


def test_zeros_elsewhere_in_the_file_pass():
    """As in the data that a camera adds."""
    assert zeroed(jpeg(noise(16, 16), exif=b"Exif\x00\x00" + bytes(500), comment=bytes(200))) == 0
    assert zeroed(jpeg(noise(16, 16)) + bytes(500)) == 0
    for length in range(0, 900, 7):  # nor does it stumble over a part of a file
        zeroed(jpeg(noise(16, 16))[:length] + bytes(RUN))
