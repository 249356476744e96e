"""Train a small model, and measure it. Built in lessons 01 and 03."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rope_teach.tasks import IGNORE, Batch

__all__ = ["accuracy", "fit", "loss_by_position", "loss_of", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed torch (every device) and Python's ``random``."""
    random.seed(seed)
    torch.manual_seed(seed)


def fit(
    model: nn.Module,
    batches: Iterator[Batch],
    steps: int,
    lr: float = 3e-3,
    label: str | None = "training",
) -> list[float]:
    """Train ``model`` in place for ``steps`` batches; return the loss of each step.

    AdamW, a short warm-up, then a cosine to zero; gradients are clipped at norm 1.
    ``label`` stands before the progress bar; None hides the bar. Raises
    ``FloatingPointError`` when the loss is no longer finite, ``ValueError`` when
    ``batches`` end before ``steps``.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, _cosine(step / steps))
    )
    losses: list[float] = []
    model.train()
    for step in _progress(steps, label):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"batches ended at step {step} of {steps}")
        loss = loss_of(model, batch)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}; a lower lr than {lr} may "
                "help"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of ``batch``, in nats: a scalar that has a gradient."""
    logits, targets = _answers(model, batch)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """Share of the answers in ``batch`` that the model gets right."""
    logits, targets = _answers(model.eval(), batch)
    right = logits.argmax(-1) == targets
    return right[targets != IGNORE].double().mean().item()


@torch.no_grad()
def loss_by_position(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy at each position, in nats: ``(seq,)``."""
    logits, targets = _answers(model.eval(), batch)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(0)


def _answers(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and targets; one answer a sequence is read from the mean over tokens."""
    tokens, targets = batch
    logits: Tensor = model(tokens)
    return (logits.mean(1) if targets.ndim == 1 else logits), targets


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _progress(steps: int, label: str | None) -> Iterator[int]:
    # On stdout and without times or losses: whatever the machine, the bar's last
    # state is the same text, which notebooks store and tests compare.
    bar = "{desc} {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt}"
    return iter(
        tqdm(
            range(steps),
            label,
            file=sys.stdout,
            ascii=False,
            bar_format=bar,
            disable=label is None,
        )
    )
