"""Whether models that an attacker brings know the images: asked before anything is attacked."""

from __future__ import annotations

from torch import Tensor

from robusttrain.core.rng import Rng
from robusttrain.evaluation.engine import Engine
from robusttrain.evaluation.scoring import top_classes, wilson

#: Images that such a model is asked about, and the fewest that tell anything.
MOST, LEAST = 32, 20


def strangers(
    engine: Engine, images: Tensor, labels: Tensor, indices: Tensor, classes: int
) -> list[str]:
    """A line for each attack that differentiates another model which is right no more often than
    by chance: made for other images, another order of the classes or another range of values, it
    fools nobody, and the target would look robust.

    Args:
        engine: of attacks whose models are at hand.
        images: (B, C, H, W); labels, indices: (B,).
        classes: of the data.
    """
    images, labels, indices = images[:MOST], labels[:MOST].cpu(), indices[:MOST]
    count, lines = len(images), []
    if count < LEAST:  # nobody is asked
        return []
    rng = Rng.for_images(engine.seed, indices).fold("strangers")
    for name, first in engine.first_of_equal().items():
        if name != first:
            continue
        for source in engine.scenarios[name].source.others:
            answers = top_classes(source(engine.target), images.float(), rng, 1, 1)[:, 0, 0]
            right = int((answers.cpu() == labels).sum())
            if guesses(right / count, count, classes):
                lines.append(
                    f"warning: {name}: the attacker's model is right on {right} of {count} images,"
                    f" which chance explains ({classes} classes): was it made for other images, or"
                    " another order of the classes? What such an attack leaves says nothing of"
                    " robustness"
                )
    return lines


def guesses(share: float, count: int, classes: int) -> bool:
    """Whether chance explains that a model is right on a share of so many images; of fewer than
    `LEAST` nobody can tell.
    """
    return count >= LEAST and wilson(share, count)[0] <= 1 / classes
