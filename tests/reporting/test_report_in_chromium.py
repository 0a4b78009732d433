"""A report in a browser without a network: drawn whole, light and dark. Needs Chromium."""

import shutil
import subprocess

import pytest
from PIL import Image

from robusttrain.reporting.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("scheme", "light"), [(1, True), (0, False)])
def test_a_report_is_drawn(folder, tmp_path, scheme, light):
    page, shot = write_report(folder), tmp_path / "shot.png"
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--window-size=1000,900", f"--blink-settings=preferredColorScheme={scheme}"),
            *(f"--screenshot={shot}", page.resolve().as_uri()),
        ],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert shot.is_file(), done.stderr.decode()[-500:]
    picture = Image.open(shot).convert("RGB")
    assert picture.size == (1000, 900)
    background = sum(picture.getpixel((5, 5))) / 3
    assert (background > 200) is light
    # Bars, lines and text: an empty page has one colour.
    assert len(picture.getcolors(1 << 24)) > 50
