"""The attacker's own models: found where they were kept, or trained first.

A path of ``surrogate:NAME`` in an attack preset stands for a model that the attacker trains by the
recipe ``configs/surrogate/NAME.yaml``, on the images that the target was trained on. What is
trained is kept by all of its settings, so that another evaluation, or another attack of the same
one, finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robusttrain.attacks.sources.surrogates import TO_BE_TRAINED
from robusttrain.config import presets, reparameterization
from robusttrain.config.build import build
from robusttrain.config.command_line import plain, read
from robusttrain.config.training import read_plan
from robusttrain.core.errors import UserError
from robusttrain.core.telling import SILENT, Say, Telling
from robusttrain.data import ImageData
from robusttrain.defenses import AdversarialTransform, Chain, Defense, Denoiser, Diffusion, Vote
from robusttrain.models.defended import DefendedClassifier
from robusttrain.running.made_from import made_from, own_code, place
from robusttrain.storage.files import hash_of_json, hash_of_weights
from robusttrain.storage.locks import alone
from robusttrain.storage.made_of import made_of
from robusttrain.storage.weights import save_tensors

#: The attacker's. It does not know the target's; and another seed of an evaluation finds what is
#: there.
SEED = 1000
#: What a recipe may say besides train.py's options.
BESIDES = ("defense_of_target", "f_b_epochs")


@contextmanager
def _of(name: str) -> Iterator[None]:
    """Name the recipe in every UserError raised inside: its options are on no command line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"surrogate {name}: {error}") from error


def options_of(
    recipe: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """What a recipe says of train.py's options, with the attacker's images and trainer; its defense
    is the target's own where the recipe changes that.
    """
    own = {key: value for key, value in recipe.items() if key not in BESIDES}
    return {**own, "data": dict(data), "trainer": {**trainer, **recipe.get("trainer", {})}}


def whole_h(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """How a recipe of h trains it, with what the recipe leaves to `Budget`.

    Raises:
        UserError: an option that there is not, or a value that cannot be read.
    """
    said = plain(read(reparameterization.parser(), [], (), {}, [dict(recipe)]))
    trainer = {"max_epochs": said["trainer"]["max_epochs"], **recipe.get("trainer", {})}
    return {"h": said["h"], "trainer": trainer}


def with_paths(node: Any, paths: Mapping[str, Path]) -> Any:
    """The node with files in place of ``surrogate:NAME``."""
    if isinstance(node, str) and node.startswith(TO_BE_TRAINED):
        return str(paths[node.removeprefix(TO_BE_TRAINED)])
    if isinstance(node, Mapping):
        return {key: with_paths(value, paths) for key, value in node.items()}
    return [with_paths(item, paths) for item in node] if isinstance(node, list) else node


@dataclass(frozen=True)
class Found:
    """Where models of the attacker's are, or will be.

    Args:
        recipes: by name.
        paths: of their files.
        missing: names of those that are to be trained.
    """

    recipes: dict[str, dict[str, Any]]
    paths: dict[str, Path]
    missing: list[str]


class Keeper:
    """Finds and trains surrogates against one target.

    Args:
        folder: where they are kept.
        target: the model under attack; recipes that use its g take it from here.
        node: configuration of the attacker's images: those that the target was trained on, in
            batches as then.
        trainer: ``--trainer.*`` options of the evaluation: accelerator, precision and progress bar
            are taken over.
        defense: configuration of the target's defense, if it has one.
    """

    def __init__(
        self,
        folder: Path,
        target: DefendedClassifier,
        node: dict[str, Any],
        trainer: dict[str, Any],
        defense: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.target, self.node, self.defense = folder, target, node, defense
        self.data: ImageData = build(node, "data", kind=ImageData)
        self.trainer: dict[str, Any] = {
            name: trainer[name]
            for name in ("accelerator", "precision", "enable_progress_bar")
            if name in trainer
        }
        # What is trained must not depend on how many processes evaluate.
        self.trainer |= {"devices": 1, "strategy": "auto"}

    def recipe(self, name: str, epochs: int | None = None) -> dict[str, Any]:
        """The content of a surrogate's preset, trained for ``epochs`` where given."""
        content = presets.read("surrogate", name, "surrogate")
        length = content.get("trainer", {})
        if not isinstance(length, dict) or not isinstance(length.get("max_epochs", 1), int):
            raise UserError(
                f"surrogate {name}: trainer = {length!r:.80}: write trainer: {{max_epochs: 20}},"
                " with a whole number"
            )
        if idle := [key for key in ("data", "seed", "name") if key in content]:
            raise UserError(
                f"surrogate {name}: {idle[0]} has no effect, since the attacker trains on the"
                " target's images, with a seed and a name of its own: leave it out"
            )
        if epochs is not None:
            content["trainer"] = {**content.get("trainer", {}), "max_epochs": epochs}
            if "defense" in content:
                content["f_b_epochs"] = epochs
        return content

    def path(self, name: str, recipe: dict[str, Any]) -> Path:
        """Where the surrogate of this recipe is kept, trained or not yet."""
        data = self.data
        about: dict[str, Any] = {
            "recipe": recipe,
            "data": [
                *(type(data).__name__, str(data.root.resolve()), *data.facts()),
                *(data.validation, data.crop, data.flip, data.seed, data.batch_size),
            ],
            "seed": SEED,
        }
        if code := own_code(recipe):
            about["code"] = code
        # What is trained depends on the target's g
        if "h" in recipe or "defense_of_target" in recipe:
            about["g"] = self._g_digest()
        key = hash_of_json(about)[:8]
        return (
            self.folder
            / f"{data.name}-{Path(name).stem}-{key}{'.safetensors' if 'h' in recipe else '.ckpt'}"
        )

    def provide(
        self,
        names: list[str],
        train: Callable[[Keeper, dict[str, Any], Path, Telling], None],
        epochs: int | None = None,
        telling: Telling = SILENT,
    ) -> dict[str, Path]:
        """The files of these surrogates; what was never trained is trained, and its cost is said
        first.

        Args:
            names: of the recipes.
            train: called with this keeper, a recipe, the file that is to be there afterwards, and
                who listens.
            epochs: of each training, in place of the recipe's.
            telling: who listens.
        """
        found = self.find(names, epochs, telling.say)
        for name in found.missing:
            path = found.paths[name]
            with alone(path, f"surrogate {name}", telling.say):
                if not path.is_file():
                    with _of(name):
                        train(self, found.recipes[name], path, telling)
        return found.paths

    def find(self, names: list[str], epochs: int | None, say: Say) -> Found:
        """Where these surrogates are kept, and which are not there yet; arguments as for
        `provide`.

        Raises:
            UserError: a recipe does not fit the target.
        """
        recipes = {name: self.recipe(name, epochs) for name in names}
        paths = {}
        for name, recipe in recipes.items():
            paths[name], why = place(self.path(name, recipe), partial(made_from, self.data))
            if why:
                say(f"surrogate {name}: {why}")
        missing = [name for name, path in paths.items() if not path.is_file()]
        for name in names:
            if name not in missing:
                say(f"surrogate {name}: taking the one trained before, {paths[name]}")
        if missing:
            for name in missing:
                self._check(name, recipes[name])
            total = sum(self._epochs(recipes[name]) for name in missing)
            say(
                f"surrogates: training {', '.join(missing)} first, {total} epochs in all (fewer:"
                " --surrogate_epochs N)"
            )
        return Found(recipes, paths, missing)

    def _epochs(self, recipe: dict[str, Any]) -> int:
        """All epochs that a recipe asks for, those of an f_b of its own among them."""
        own = recipe.get("trainer", {}).get("max_epochs", 30)
        f_b = (
            presets.read("training", recipe.get("f_b_training", "f_b"))
            if "defense" in recipe
            else {}
        )
        return int(
            own
            + recipe.get("f_b_epochs", f_b.get("trainer", {}).get("max_epochs", 20) if f_b else 0)
        )

    def _check(self, name: str, recipe: dict[str, Any]) -> None:
        """Raise UserError if a recipe says what cannot be read, or if the target has no g of the
        kind that it imitates: before anything is trained.
        """
        with _of(name):
            if "h" in recipe:
                whole_h(recipe)
            else:
                read_plan(said=[options_of(recipe, self.node, self.trainer)])
        if not {"h", "defense_of_target"} & recipe.keys():
            return  # imitates no g: the target need have none
        defense = self.target.defense
        assert defense is not None  # `path` asked for its digest
        if "defense_of_target" in recipe and not (defense.has_f_b and self.defense):
            kind = type(defense).__name__
            raise UserError(
                f"surrogate {name} imitates the target's g, but {kind} is no adversarial"
                " transformation"
            )
        if "h" in recipe:
            facts = self.data.facts()
            example = torch.full((1, facts.channels, facts.image_size, facts.image_size), 0.5)
            if defense(example).shape != example.shape:
                kind = type(defense).__name__
                raise UserError(
                    f"surrogate {name}: {kind} changes the size of images: no h can follow it"
                )

    def _g_digest(self) -> str:
        defense = self.target.defense
        if defense is None:
            raise UserError("this attack imitates the target's g, but the target has no defense")
        # A g that asks the classifier is another one before another classifier.
        decides = self.target if defense.asks_classifier else defense
        # Options say nothing of a defense that was built in Python, nor of code that was edited.
        return hash_of_json([self._defense_node(), hash_of_weights(decides), made_of(decides)])

    def _defense_node(self) -> dict[str, Any]:
        """The target's defense as options, in so far as they are known."""
        node = self.defense or {}
        arguments = {
            key: value
            for key, value in (node.get("init_args") or {}).items()
            if key not in ("weights", "weights_which")
        }
        return {
            "class_path": node.get("class_path", type(self.target.defense).__name__),
            "init_args": arguments,
        }

    def defense_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The target's own defense, f_b and all, with some options of its g changed."""
        node, defense = self.defense, self.target.defense
        assert node is not None  # _check
        assert defense is not None
        return self._own(node, defense, changes, self._g_digest()[:8])

    def _own(
        self, node: Mapping[str, Any], defense: Defense, changes: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        """`defense_with` of one part, whose network is kept under this name."""
        arguments = dict(node.get("init_args") or {})
        if isinstance(defense, Chain):
            inner = zip(arguments["defenses"], defense.defenses, strict=True)
            arguments["defenses"] = [
                self._own(each, part, changes, f"{name}-{number}")  # type: ignore[arg-type]
                for number, (each, part) in enumerate(inner)
            ]
        elif isinstance(defense, Vote):
            arguments["defense"] = self._own(arguments["defense"], defense.defense, changes, name)
        elif isinstance(defense, AdversarialTransform):
            weights = self.folder / f"f_b-{name}.safetensors"
            save_tensors(defense.f_b.module, weights)
            arguments |= {**changes, "weights": str(weights)}
            arguments.pop("weights_which", None)
        elif isinstance(defense, Denoiser | Diffusion):
            weights = self.folder / f"{defense.trained_by}-{name}.safetensors"
            save_tensors(defense.network.module, weights)
            arguments["weights"] = str(weights)
            arguments.pop("weights_which", None)
        return {"class_path": node["class_path"], "init_args": arguments}
