"""Every attack on the pretend device: nothing falls back to the CPU, and the host waits for the
device no more often than this file says.
"""

import inspect

import pytest
import torch
from pretend_device import DEVICE, counted
from subjects import DETERMINISTIC, RANDOM, build, images_and_labels, scenario, shortened

import robusttrain.attacks as attacks
from robusttrain.attacks import Attack, GradientEstimator, Source
from robusttrain.config import presets

NAMES = [*presets.names("attack")]
WAITS = {}
GROWING = {}

CASES = [(name, kind) for name in NAMES for kind in ("deterministic", "random")]

def ran(name, defenses, device, steps):
    found = scenario(name)
    built = build(found.source, defenses)
    if built is None:
        return None
    attack, source = shortened(found.attack, steps), built[1].to(device)
    attack.check(source)
    x, y, rng = images_and_labels(device)
    with torch.no_grad():
        source(x[:1], rng[:1])
    with counted() as waits:
        result = attack(source, x, y, rng)
    assert result.device == torch.device(device)
    return waits, result.cpu(), built[0]

@pytest.mark.parametrize("kind", ["deterministic", "random"])
@pytest.mark.parametrize("name", NAMES)
def test_x(name, kind):
    d = DETERMINISTIC if kind == "deterministic" else RANDOM
    a = ran(name, d, DEVICE, 2)
    if a is None: 
        print("RES", name, kind, "n/a"); return
    b = ran(name, d, DEVICE, 4)
    c = ran(name, d, "cpu", 2)
    torch.testing.assert_close(a[1], c[1], atol=1e-5, rtol=0)
    print("RES", name, kind, a[2], sum(a[0].values()), sum(b[0].values()), "|", b[0].told().replace("\n", " / ") if sum(b[0].values()) != 2 else "")
