"""Every configuration of the installed transformers, and how its own code rotates.

The oracle is each family's module: the class that makes its tables, and the function
that its attention calls. ``python -m tests.dialects.sweep`` prints the table.
"""

import copy
import importlib
import inspect
import itertools
import logging
import pathlib
import warnings

import torch

from rope_teach.dialects.hugging_face import rotary_embedding

POSITIONS = torch.tensor([3, 0, 4, 1, 7, 500])
SPREAD = torch.tensor([[0], [2], [5], [1]])  # added for each further coordinate

HALF_ROTATED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
TWO_LAYERS = {
    "layer_types": ["sliding_attention", "full_attention"],
    "num_hidden_layers": 2,
}
FITTING = {  # where the defaults of the class cannot run
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e5},
        },
        **TWO_LAYERS,
    },
    "esm": {"position_embedding_type": "rotary", "vocab_size": 33},
    "glm4v_text": {"rope_parameters": HALF_ROTATED},
    "glm4v_moe_text": {"rope_parameters": HALF_ROTATED, "head_dim": 128},
    "glm_image_text": {"rope_parameters": HALF_ROTATED},
    "granitemoehybrid": {"position_embedding_type": "rope"},
    "laguna": TWO_LAYERS,
    "mellum": TWO_LAYERS,
    "zamba2": {"use_mem_rope": True},
    "zaya": {
        "layer_types": ["hybrid", "hybrid_sliding"],
        "num_hidden_layers": 2,
        "sliding_window": 8,
    },
    "qwen3_omni_moe_text": {"head_dim": 128},
}


def quiet(make, *args, **kwargs):
    """Call without the warnings and the log lines of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def families():
    """``(name, modeling module, configuration module)`` of each that rotates."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    import transformers

    root = pathlib.Path(transformers.__file__).parent / "models"
    for path in sorted(root.glob("*/configuration_*.py")):
        name = path.parent.name
        code = path.with_name(f"modeling_{name}.py")
        if path.stem != f"configuration_{name}" or not (
            code.exists() or path.with_name(f"modular_{name}.py").exists()
        ):
            continue
        if code.exists() and "otary" not in code.read_text():
            continue
        configuration = importlib.import_module(
            f"transformers.models.{name}.{path.stem}"
        )
        if code.exists():
            modeling = importlib.import_module(
                f"transformers.models.{name}.{code.stem}"
            )
        else:
            modeling = of_another(configuration)
        if modeling is not None:
            yield name, modeling, configuration


def of_another(configuration):
    """The modeling module of a family that has none of its own, as InternLM 3."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    types = [getattr(kind, "model_type", "") for kind in classes(configuration)]
    names = [MODEL_MAPPING_NAMES[t] for t in types if t in MODEL_MAPPING_NAMES]
    if not names or not isinstance(names[0], str):
        return None
    return importlib.import_module(getattr(transformers, names[0]).__module__)


def classes(module, suffix=""):
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            if value.__name__.endswith(suffix):
                yield value


def takes(kind, config_class):
    """Whether the constructor of ``kind`` says that it takes this configuration."""
    parameter = inspect.signature(kind.__init__).parameters.get("config")
    said = parameter.annotation if parameter else None
    return said is config_class or said == config_class.__name__


def cases():
    """``(tag, config, layer_type, makers, functions)`` of every type of layer."""
    for name, modeling, configuration in families():
        for config_class in classes(configuration):
            if not getattr(config_class, "model_type", ""):
                continue
            try:
                config = quiet(config_class, **FITTING.get(config_class.model_type, {}))
            except Exception:  # nothing to read: it needs arguments
                assert config_class.model_type not in FITTING
                continue
            parameters = getattr(config, "rope_parameters", None) or {}
            if not parameters and getattr(config, "rope_theta", None) is None:
                continue
            nested = [k for k, v in parameters.items() if isinstance(v, dict)]
            for layer_type in nested or [None]:
                tag = f"{name}/{config_class.model_type}"
                tag += f"[{layer_type}]" if layer_type else ""
                found = (
                    makers(modeling, config_class),
                    functions(modeling, config_class),
                )
                yield tag, config, layer_type, *found


def makers(modeling, config_class):
    """The classes that make tables for this configuration."""
    every = {kind.__name__: kind for kind in classes(modeling, "RotaryEmbedding")}
    named = {
        name
        for kind in classes(modeling)
        if takes(kind, config_class)
        for name in kind.__init__.__code__.co_names
    }
    own = [kind for kind in every.values() if takes(kind, config_class)]
    return own or [every[name] for name in every if name in named] or [*every.values()]


def functions(modeling, config_class):
    """The functions to rotate that attention for this configuration calls."""
    layers = [kind for kind in classes(modeling) if "forward" in vars(kind)]
    own = [kind for kind in layers if takes(kind, config_class)]
    attention = [kind for kind in own if kind.__name__.endswith("Attention")]
    for kinds in (attention, own, layers):
        names = {
            name
            for kind in kinds
            for name in inspect.unwrap(kind.forward).__code__.co_names
            if name.startswith(("apply_rotary", "vision_apply"))
        }
        if names:
            return [getattr(modeling, name) for name in sorted(names)]
    return []


def meant(functions, config):
    """Of two that attention chooses between, the one that this configuration gets."""
    flag = getattr(config, "rope_interleave", None)
    if flag is None:
        return functions
    return [f for f in functions if f.__name__.endswith("_interleave") == flag]


def tables(maker, config, layer_type, axes):
    """What one class makes for :data:`POSITIONS`, each coordinate with its own."""
    layer = quiet(maker, config)
    positions = POSITIONS[None]
    if axes > 1:
        positions = (POSITIONS + SPREAD[:axes])[:, None]
    more = (layer_type,) if layer_type else ()
    got = layer(torch.zeros(1, len(POSITIONS), 8), positions, *more)
    if not isinstance(got, tuple) and not isinstance(got, torch.Tensor):
        raise TypeError(f"{maker.__name__} makes {type(got).__name__}")
    return layer, got if isinstance(got, tuple) else (got,)


def theirs(function, q, k, table):
    """Scores after the family's own rotation: ``(batch, heads, seq, head_dim)`` in."""
    names = list(inspect.signature(function).parameters)
    if len(table) == 1 and function.__module__.endswith("llama4"):
        q, k = (x.transpose(1, 2) for x in (q, k))
        q, k = (x.transpose(1, 2) for x in function(q, k, *table))
    elif names[0] in ("x", "tensor"):
        q, k = (function(x, *table) for x in (q, k))
    else:
        q, k = function(q, k, *table)
    return q @ k.mT


def sample(width):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, 2, len(POSITIONS), width)
    return torch.randn(shape, generator=generator)


def compare(rope, config, layer_type, makers, functions):
    """``"agrees"``, or in what the family's own tables and rotation differ."""
    positions = POSITIONS
    if rope.axes > 1:
        positions = (POSITIONS + SPREAD[: rope.axes]).T
    said = []
    for maker, function in itertools.product(makers, meant(functions, config)):
        try:
            layer, table = tables(maker, config, layer_type, rope.axes)
        except Exception as error:
            said.append(f"{maker.__name__}: {type(error).__name__} {error!s:.80}")
            continue
        if rope.axes == 1 and len(getattr(layer, "mrope_section", None) or ()) > 1:
            return f"{maker.__name__} takes positions of three coordinates"
        for width in (rope.head_dim, rope.rotary_dim):
            q, k = sample(width)
            try:
                expected = theirs(function, q, k, table)
            except Exception as error:
                said.append(f"{function.__name__}: {error!s:.80}")
                continue
            ours = rope.rotate
            if width < rope.head_dim:  # the family cuts the head itself
                rest = torch.zeros(*q.shape[:-1], rope.head_dim - width)
                q, k = (torch.cat([x, rest], dim=-1) for x in (q, k))
            got = ours(q, positions) @ ours(k, positions).mT
            gap = (got - expected).abs().max().item()
            if gap > 0.02 + 1e-4 * expected.abs().max():
                return f"{function.__name__} differs by {gap:.3g}"
            return "agrees"
    return f"no oracle: {'; '.join(said) or 'no function'}"


def scaled(case, kind, parameters):
    """The same case under another rope type; None where it has none to change."""
    tag, config, layer_type, *oracle = case
    given = getattr(config, "rope_parameters", None)
    if not given or "axial" in str(given):
        return None
    config, given = copy.deepcopy(config), copy.deepcopy(given)
    inner = given[layer_type] if layer_type else given
    kept = {k: v for k, v in inner.items() if k.startswith(("mrope", "partial"))}
    theta = inner.get("rope_theta", 10_000.0)
    inner.clear()
    inner.update(kept, rope_type=kind, rope_theta=theta, **parameters)
    config.rope_parameters = given
    if "original_max_position_embeddings" in vars(config):
        config.original_max_position_embeddings = 128
    return tag, config, layer_type, *oracle


def verdicts(read, cases):
    """``{tag: verdict}`` of ``read(config, layer_type)`` for every case."""
    found = {}
    for tag, config, layer_type, *oracle in cases:
        try:
            rope = read(config, layer_type)
        except (TypeError, ValueError) as error:
            found[tag] = f"refused: {error}"
            continue
        found[tag] = compare(rope, config, layer_type, *oracle)
    return found


def read(config, layer_type):
    """Ours, told what the configuration cannot tell."""
    file = isinstance(config, dict)
    field = config.get if file else lambda name: getattr(config, name, None)
    kinds = field("rope_parameters") or {}
    kind = (kinds[layer_type] if layer_type else kinds).get("rope_type")
    length = 600 if kind in ("dynamic", "longrope") else None
    bases = field("layer_rope_theta")
    layer = next((i for i, base in enumerate(bases) if base), None) if bases else None
    return rotary_embedding(config, layer_type, layer=layer, length=length)


def main():
    found = verdicts(read, cases())
    for tag, verdict in found.items():
        print(f"{tag:55} {verdict:.150}")
    for kind in ("agrees", "refused", "no oracle"):
        print(kind, sum(verdict.startswith(kind) for verdict in found.values()))


if __name__ == "__main__":
    main()
