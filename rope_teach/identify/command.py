"""``python -m rope_teach identify``: what a person at a terminal can ask.

A target is ``package.module:name`` of a function, an instance or a class (made with
``--config`` or with its head_dim), a ``config.json``, or a folder of a checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from rope_teach.identify import Report, conversion, identify
from rope_teach.identify.layers import PROJECTIONS
from rope_teach.identify.probe import LAYOUTS

__all__ = ["add_arguments", "run"]

STATUS = """exit status: 0 a correct RoPE, or A's weights can be brought to B; 1 a law
is broken, or there is no way from A to B; 2 no answer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``identify``."""
    parser.epilog = STATUS
    parser.add_argument(
        "target",
        nargs="+",
        metavar="TARGET",
        help="package.module:name, config.json, or a checkpoint's folder; two targets: "
        "how to bring weights from the first to the second",
    )
    parser.add_argument("--call", help='the arguments, as "q, k, cos, sin"')
    parser.add_argument("--head-dim", type=int, help="features of a head")
    parser.add_argument("--layout", choices=LAYOUTS, help="the axes of x")
    parser.add_argument("--config", help="a config.json, to make a class with")
    parser.add_argument(
        "--layer-type", help="of a config.json whose layers differ: full_attention, ..."
    )
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32", "float16", "bfloat16"),
        help="of x; default: float32, or that of a layer's weights",
    )
    parser.add_argument("--json", action="store_true", help="print the data")


def run(given: argparse.Namespace) -> int:
    """Answer, on standard output; what cannot be answered goes to standard error."""
    answers = []
    for target in given.target[:2]:
        try:
            answers.append(_answer(target, given))
        except Exception as error:  # whatever a stranger's code may raise
            why = str(error) or type(error).__name__
            print(f"cannot identify {target}: {why}", file=sys.stderr)
            return 2
    if len(given.target) > 2:
        print("cannot identify more than two targets at once", file=sys.stderr)
        return 2
    if len(answers) == 2:
        (a, _), (b, _) = answers
        return _from_one_to_the_other(a, b, given.json)
    report, said = answers[0]
    if given.json:
        more = {"checkpoint": said} if said else {}
        print(json.dumps(report.as_dict() | more, indent=2))
    else:
        print("\n".join([*said, str(report)]))
    return 0 if report.correct else 1


def _answer(target: str, given: argparse.Namespace) -> tuple[Report, list[str]]:
    """A report, and what a configuration or the files of a checkpoint say beside it."""
    said: list[str] = []
    path = Path(target)
    if path.is_dir():
        said += _weights(path)
        path /= "config.json"
        if not path.is_file():
            raise ValueError(f"the folder has no config.json: {target}")
    if path.suffix == ".json":
        from rope_teach.dialects.hugging_face import rotary_embedding

        data = _json(path)
        text = data.get("text_config")
        whole, data = data, text if isinstance(text, dict) else data
        thing: Any = rotary_embedding(data, given.layer_type)
        kind = str(data.get("model_type", "no model_type"))
        kind += "" if data is whole else ", the text_config"
        said.append(f"{path.name}: {kind}, read as our RotaryEmbedding")
    else:
        thing = _load(target, given.head_dim, given.config)
    dtype = getattr(torch, given.dtype) if given.dtype else None
    options = {"call": given.call, "head_dim": given.head_dim, "layout": given.layout}
    return identify(thing, dtype=dtype, **options), said


def _from_one_to_the_other(a: Report, b: Report, as_json: bool) -> int:
    """How to bring weights of q and k from A to B, or why they cannot be brought."""
    way = conversion(a, b)
    if as_json:
        data = {"permutation": way.permutation, "reason": way.reason}
        print(json.dumps(data, indent=2))
    elif way.permutation is None:
        print(f"no way: {way.reason}.")
    elif way.permutation == tuple(range(len(way.permutation))):
        print("weights fit as they are.")
    else:
        order = ", ".join(map(str, way.permutation[:6]))
        print(
            f"reorder the rows of the q and k projections (and of their biases and "
            f"norms), head by head: {order}, ...\n  conversion(identify(A), "
            "identify(B)).projection(weight, heads) does it"
        )
    if not as_json:
        print(f"\nA: {a}\n\nB: {b}")
    return 0 if way.permutation is not None else 1


# ----------------------------------------------------------------------- the targets


def _load(target: str, head_dim: int | None, config: str | None) -> Any:
    """Import what ``package.module:name`` names, and make an instance of a class."""
    module, colon, names = target.partition(":")
    if not (module and colon and names):
        before, dot, name = target.rpartition(".")
        guess = f"; is {before}:{name} meant?" if dot else ""
        raise ValueError(
            "expected package.module:function, a config.json or a checkpoint's folder, "
            "and there is no such folder" + guess
        )
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a stranger's module may raise
        raise ImportError(f"{type(error).__name__}: {error}") from error
    for name in names.split("."):
        found = getattr(found, name)
    return _made(found, names, head_dim, config) if inspect.isclass(found) else found


def _made(
    found: Callable[..., Any], names: str, head_dim: int | None, config: str | None
) -> Any:
    """An instance of a class, by its configuration, or for one head."""
    try:
        if config is None:
            return found(head_dim or 64)
        given = _configuration(found, _json(Path(config)))
        parameters = inspect.signature(found).parameters
        more = {"layer_idx": 0} if "layer_idx" in parameters else {}
        return found(given, **more)
    except Exception as error:  # whatever a stranger's class may raise
        how = f"{names}({head_dim or 64})" if config is None else f"{names}({config})"
        raise TypeError(
            f"the class cannot be made by {how} ({error}); give --config config.json, "
            "or name an instance of it, in a module of your own"
        ) from error


def _configuration(found: Callable[..., Any], data: dict[str, Any]) -> Any:
    """The configuration class of transformers for it, or a plain namespace."""
    if not getattr(found, "__module__", "").startswith("transformers."):
        return argparse.Namespace(**data)
    from transformers import AutoConfig

    data = dict(data)
    return AutoConfig.for_model(data.pop("model_type"), **data)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold an object, it holds {type(data).__name__}")
    return data


def _weights(folder: Path) -> list[str]:
    """The projections of q and k that a checkpoint's safetensors files hold."""
    names: list[str] = []
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = list(_json(index).get("weight_map", {}))
    for file in sorted(folder.glob("*.safetensors")) if not names else ():
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            names += json.loads(opened.read(size))
    if not names:
        return ["no safetensors file: nothing said of the weights"]
    counts = {
        part: sum(name.endswith(f".{part}.weight") for name in names)
        for part in dict.fromkeys(chain(*PROJECTIONS))
    }
    held = ", ".join(f"{count} {part}" for part, count in counts.items() if count)
    return [f"{len(names)} tensors: {held or 'no projection that we know by name'}"]
