"""Train a small model, save it, and measure it. Built in lessons 01, 03 and 14."""

from __future__ import annotations

import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rope_teach import frequencies
from rope_teach.course import models
from rope_teach.course.progress import progress
from rope_teach.course.tasks import IGNORE, Batch
from rope_teach.frequencies import Scaling

__all__ = [
    "RESULTS",
    "accuracy",
    "best_device",
    "bits_by_position",
    "exact_match",
    "f1",
    "fit",
    "load",
    "loss_by_position",
    "loss_of",
    "resume",
    "rouge_l",
    "save",
    "seed_everything",
    "stored_result",
]

RESULTS = Path(__file__).parent / "results"  # what the scripts in benchmarks/ measured

Model = TypeVar("Model", bound=nn.Module)

# The model's input may be several tensors: a document and its summary so far.
AnyBatch = tuple[Tensor | tuple[Tensor, ...], Tensor]


def seed_everything(seed: int) -> None:
    """Seed torch (every device) and Python's ``random``."""
    random.seed(seed)
    torch.manual_seed(seed)


def fit(
    model: nn.Module,
    batches: Iterator[AnyBatch],
    steps: int,
    lr: float = 3e-3,
    label: str | None = "training",
    *,
    clip: float = 1.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    seconds: float = math.inf,
    checkpoint: Path | None = None,
    every: int = 100,
) -> list[float]:
    """Train ``model`` in place for ``steps`` batches; return the loss of each step.

    AdamW, with a short warm-up, then cosine decay to zero.

    Parameters
    ----------
    label
        Shown before the progress bar; None hides the bar.
    clip
        Maximum norm of the gradient.
    device
        Where to train; the model and each batch are moved there. Default: the model's
        device. :func:`best_device` picks one.
    dtype
        ``torch.bfloat16`` trains in mixed precision (autocast). Default: float32.
    seconds
        Time budget: no step starts after it.
    checkpoint
        A file that is written every ``every`` steps and at the end. If it exists,
        training resumes from it, with the same result: pass the same ``batches`` from
        the start; those already seen are skipped.

    Notes
    -----
    Raises ``FloatingPointError`` when the loss is not finite, and ``ValueError``
    when ``batches`` end before ``steps``, a batch contains no answer, or the
    checkpoint belongs to a different run or cannot store this model.
    """
    device = torch.device(device) if device else next(model.parameters()).device
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    settings = {"steps": steps, "lr": lr, "clip": clip}
    losses: list[float] = []
    if checkpoint:
        configuration(model)  # fail now rather than when saving
    if checkpoint and checkpoint.exists():
        losses = resume(checkpoint, model, optimizer, settings)
    done, began = len(losses), time.monotonic()
    for step in progress(steps, label):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"batches ended at step {step} of {steps}")
        if step < done:
            continue
        if time.monotonic() - began >= seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 20, _cosine(step / steps))
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = loss_of(model, _to(batch, device))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}; a lower lr than {lr} may "
                "help"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
        if checkpoint and (step + 1) % every == 0:
            save(checkpoint, model, optimizer, settings, losses)
    if checkpoint:
        save(checkpoint, model, optimizer, settings, losses)
    return losses


def best_device() -> torch.device:
    """The fastest device available: a CUDA GPU, an Apple GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


# ------------------------------------------------------------------- checkpoints


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    settings: dict[str, Any] | None = None,
    losses: Sequence[float] = (),
) -> None:
    """Write weights and configuration to ``path``, in safetensors.

    With an ``optimizer`` it is a checkpoint that :func:`fit` can resume from. The file
    is written atomically. Raises ``ValueError`` when the model's ``scaling`` is not a
    rule in :mod:`rope_teach.frequencies`: the file stores its name and arguments.
    Anything put into the model later, such as a different ``rope``, is not saved.
    """
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    if optimizer is not None:
        tensors["random"] = torch.get_rng_state()
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
    facts = {
        "class": type(model).__name__,
        "config": configuration(model),
        "settings": settings,
        "losses": list(losses),
    }
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, {"rope_teach": json.dumps(facts)})
    part.replace(path)


def load(path: Path) -> nn.Module:
    """Return the model saved by :func:`save`, on the CPU.

    Raises ``ValueError`` for a damaged file, or one that contains something else.
    """
    tensors, facts = read(path)
    name = facts.get("class")
    if name not in models.__all__ or not isinstance(getattr(models, name), type):
        raise ValueError(
            f"{path} contains a {name}, which is not one of the course's models"
        )
    weights = _part(tensors, "model.")
    return rebuilt(path, getattr(models, name), facts.get("config", {}), weights)


def rebuilt(
    path: Path, kind: type[Model], config: dict[str, Any], tensors: dict[str, Tensor]
) -> Model:
    """A model of this kind with the weights that ``path`` stores."""
    try:
        if config.get("scaling"):
            rule, arguments = config["scaling"]
            rule = partial(getattr(frequencies, rule), **arguments)
            config = {**config, "scaling": rule}
        model = kind(**config)
        for stored in tensors.values():
            model.to(stored.dtype)
        model.load_state_dict(tensors)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not fit its own configuration: {error}"
        ) from None
    return model


def resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> list[float]:
    """Restore model and optimizer from the checkpoint; return its losses."""
    tensors, facts = read(path)
    there = {**facts.get("config", {}), **(facts.get("settings") or {})}
    asked = {**configuration(model), **settings}
    for name in there.keys() | asked.keys():
        if there.get(name) != asked.get(name):
            raise ValueError(
                f"{path.name} is from a run with {name}={there.get(name)}, this one "
                f"has {name}={asked.get(name)}; delete it to start over"
            )
    model.load_state_dict(_part(tensors, "model."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random"])
    losses: list[float] = facts["losses"]
    return losses


def configuration(model: nn.Module) -> dict[str, Any]:
    """The constructor arguments of ``model``, as JSON can store them."""
    config: dict[str, Any] = dict(getattr(model, "config", {}))
    if config.get("scaling") is not None:
        config["scaling"] = _described(config["scaling"])
    return config


def _described(rule: Scaling) -> list[Any]:
    """Name and arguments of a rule, bare or in a ``partial``, for a file to store."""
    call = rule if isinstance(rule, partial) else partial(rule)
    name = getattr(call.func, "__name__", "")
    known = name in frequencies.__all__ and getattr(frequencies, name) is call.func
    try:
        arguments = json.loads(json.dumps(call.keywords))
    except TypeError:  # a tensor, say
        known = False
    if not known or call.args:
        raise ValueError(
            "to be saved, scaling must be a rule in rope_teach.frequencies, or a "
            f"partial of one with numbers and lists as keyword arguments; got {rule}"
        )
    return [name, arguments]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file that rope_teach wrote, and the facts beside them."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    try:
        facts = json.loads(metadata.get("rope_teach", ""))
    except json.JSONDecodeError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} was not written by rope_teach")
    return tensors, facts


def _part(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


# -------------------------------------------------------------------- measuring


def loss_of(model: nn.Module, batch: AnyBatch) -> Tensor:
    """Mean cross-entropy of ``batch``, in nats: a scalar with a gradient.

    Raises ``ValueError`` if the batch contains no answer, or one outside the model's
    vocabulary.
    """
    logits, targets = _answers(model, batch)
    if not (targets != IGNORE).any():
        raise ValueError(
            f"the batch {tuple(targets.shape)} contains no answer to learn"
        )
    if targets.max() >= logits.shape[-1]:
        raise ValueError(
            f"target {int(targets.max())} is outside the model's vocabulary of "
            f"{logits.shape[-1]} tokens"
        )
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def accuracy(model: nn.Module, batch: AnyBatch) -> float:
    """Share of the answers in ``batch`` that the model gets right."""
    logits, targets = _answers(model.eval(), batch)
    right = logits.argmax(-1) == targets
    return right[targets != IGNORE].double().mean().item()


@torch.no_grad()
def loss_by_position(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy at each position, in nats: ``(seq,)``.

    Targets of ``IGNORE`` do not count; where a position has no other, it is NaN.
    """
    logits, targets = _answers(model.eval(), batch)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return losses.sum(0) / (targets != IGNORE).sum(0)


def bits_by_position(model: nn.Module, batch: Batch) -> Tensor:
    """Bits per byte at each position, for tokens that are bytes: ``(seq,)``.

    The loss in base 2: 0 is a perfect prediction, 8 a blind guess among 256 bytes.
    Lessons 12 and 13.
    """
    return loss_by_position(model, batch) / math.log(2)


def stored_result(name: str) -> dict[str, Any]:
    """What ``benchmarks/<name>.py`` measured: its command, machine and numbers.

    The files are in ``RESULTS`` and are installed with the package. An unknown name
    raises ``FileNotFoundError`` and lists the existing ones. Lesson 03.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        found = ", ".join(sorted(path.stem for path in RESULTS.glob("*.json")))
        raise FileNotFoundError(
            f"name must be one of the stored results ({found}), got {name!r}"
        )
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def exact_match(predicted: str, reference: str) -> float:
    """1 if the two texts have the same words in the same order, else 0.

    Case and punctuation do not count, unless a text is nothing but punctuation.

    >>> exact_match("Mast cracks.", "mast cracks"), exact_match("()", "[]")
    (1.0, 0.0)
    """
    return float(_words(predicted) == _words(reference))


def f1(predicted: str, reference: str, n: int = 1) -> float:
    """Harmonic mean of precision and recall over runs of ``n`` words, 0 to 1.

    For n = 1 this is the F1 of question answering, and ROUGE-1; for n = 2, ROUGE-2.
    Source: Lin (2004), "ROUGE". Lessons 14 and 15.

    >>> f1("mast cracks . pump jams .", "pump jams . sail holds .")
    0.5
    """
    words = _words(predicted), _words(reference)
    if not any(words):
        return 1.0  # nothing was expected and nothing was predicted
    a, b = (Counter(_runs(text, n)) for text in words)
    return _harmonic((a & b).total(), a.total(), b.total())


def rouge_l(predicted: str, reference: str) -> float:
    """F1 of the longest common subsequence of words.

    Other words may come between its words. Lesson 14.

    >>> rouge_l("mast cracks . pump jams .", "pump jams . mast cracks .")
    0.5
    """
    a, b = _words(predicted), _words(reference)
    if not a and not b:
        return 1.0  # nothing was expected and nothing was predicted
    longest = [0] * (len(b) + 1)  # between the words of a so far and the first j of b
    for word in a:
        before = longest.copy()
        for j, other in enumerate(b, start=1):
            longest[j] = (
                before[j - 1] + 1 if word == other else max(before[j], longest[j - 1])
            )
    return _harmonic(longest[-1], len(a), len(b))


def _words(text: str) -> list[str]:
    """Letters and digits of any script; punctuation counts where there is no word."""
    return re.findall(r"[^\W_]+", text.lower()) or text.split()


def _runs(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _harmonic(common: int, predicted: int, reference: int) -> float:
    return 2 * common / max(1, predicted + reference)


def _answers(model: nn.Module, batch: AnyBatch) -> tuple[Tensor, Tensor]:
    """Logits and targets; one answer per sequence is the mean over its tokens."""
    tokens, targets = batch
    logits: Tensor = model(*tokens) if isinstance(tokens, tuple) else model(tokens)
    return (logits.mean(1) if targets.ndim == 1 else logits), targets


def _to(batch: AnyBatch, device: torch.device) -> AnyBatch:
    tokens, targets = batch
    if isinstance(tokens, tuple):
        return tuple(each.to(device) for each in tokens), targets.to(device)
    return tokens.to(device), targets.to(device)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
