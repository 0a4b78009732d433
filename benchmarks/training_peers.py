"""What `benchmarks.training` compares with: the loop of released code, and ART's trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.transform import straightforward
from robusttrain import DefendedClassifier
from robusttrain.attacks import ProjectedGradient
from robusttrain.data import Batch
from robusttrain.defenses import AdversarialTransform


def autocast(images: Tensor, dtype: torch.dtype) -> Any:
    """Mixed precision as Lightning's bf16-mixed has it; nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(images.device.type, dtype)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD as in our presets; the rate keeps the weights where they are, so that every round is the
    same work.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.SGD(weights, lr=1e-6, momentum=0.9, weight_decay=5e-4)


def plain_loop(
    model: DefendedClassifier, batch: Batch, attack: ProjectedGradient, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """The loop of released code: evaluation mode to craft, ``backward()`` in every step, training
    mode to learn.
    """
    images, labels, optimizer = batch.images.contiguous(), batch.labels, optimizer_of(model)
    epsilon, alpha = attack.threat.epsilon, attack.alpha

    def step() -> Tensor:
        model.eval()
        adversarial = (images + torch.empty_like(images).uniform_(-epsilon, epsilon)).clamp(0, 1)
        for _ in range(attack.steps):
            adversarial = adversarial.detach().requires_grad_()
            with autocast(images, dtype):
                loss = F.cross_entropy(identity_backward(model, adversarial), labels)
            loss.backward()
            assert adversarial.grad is not None
            moved = adversarial.detach() + alpha * adversarial.grad.sign()
            adversarial = torch.min(torch.max(moved, images - epsilon), images + epsilon).clamp(
                0, 1
            )
        model.train()
        optimizer.zero_grad()
        with autocast(images, dtype):
            loss = F.cross_entropy(identity_backward(model, adversarial.detach()), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def identity_backward(model: DefendedClassifier, images: Tensor) -> Tensor:
    """Logits behind g, whose derivative is taken for the identity."""
    if model.defense is not None:
        transformed = plain_transform(model.defense, images.detach())
        images = transformed + (images - images.detach())
    logits: Tensor = model.classifier(images)
    return logits


def plain_transform(defense: nn.Module, images: Tensor) -> Tensor:
    """g(x) as it is usually written; other defenses as they are."""
    if not isinstance(defense, AdversarialTransform):
        transformed: Tensor = defense(images)
        return transformed
    f_b: Any = defense.f_b.module
    f_b.requires_grad_(True)  # as whoever loads a network leaves it
    return straightforward(
        f_b, images, defense.attack.threat.epsilon, defense.attack.steps
    ).detach()


def art_trainer(
    model: DefendedClassifier, batch: Batch, attack: ProjectedGradient
) -> Callable[[], Tensor]:
    """One batch of ART's AdversarialTrainer, all of it adversarial."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import PyTorchClassifier

    device = batch.images.device
    images = batch.images.contiguous().cpu().numpy()
    labels = F.one_hot(batch.labels, 10).cpu().numpy()
    classifier = PyTorchClassifier(
        model=model.classifier,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer_of(model.classifier),
        input_shape=images.shape[1:],
        nb_classes=10,
        clip_values=(0, 1),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    pgd = ProjectedGradientDescentPyTorch(
        classifier,
        eps=attack.threat.epsilon,
        eps_step=attack.alpha,
        max_iter=attack.steps,
        num_random_init=1,
        batch_size=len(images),
        verbose=False,
    )
    trainer = AdversarialTrainer(classifier, pgd, ratio=1.0)

    def step() -> Tensor:
        trainer.fit(images, labels, batch_size=len(images), nb_epochs=1)
        return torch.zeros(())

    return step
