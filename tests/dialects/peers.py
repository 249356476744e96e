"""Configurations and models of transformers, small and without its warnings."""

import importlib
import importlib.util
import warnings

import pytest
import torch

if importlib.util.find_spec("transformers") is None:
    pytest.skip("the peers extra has transformers", allow_module_level=True)

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that attention depends on the rotation
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LISTS = {
    "short_factor": [1.0, 1.1, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
OLD = {"original_max_position_embeddings": 16}


def modeling(name):
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def build(name, **fields):
    """A configuration or a model of transformers, without its warnings."""
    transformers = importlib.import_module("transformers")  # 2 s, so not when collected
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, name)(**fields)


def tiny(name, **more):
    """A random model; the rotation decides what it says."""
    name = name.partition(",")[0]
    fields = {**SIZES, **more}
    if "rope_parameters" in fields:
        fields["rope_parameters"] = {"rope_theta": 1000.0, **fields["rope_parameters"]}
    text = "Text" if name in ("Gemma3", "Gemma4", "Qwen3_5") else ""
    kind = f"{name}{text}Config"
    torch.manual_seed(0)
    return build(f"{name}ForCausalLM", config=build(kind, **fields)).eval()


def padded_batch():
    torch.manual_seed(1)
    tokens = torch.randint(3, 50, (2, 12))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    return tokens, mask


@torch.no_grad()
def logits(model):
    """Of the real tokens: what a model says at padding means nothing."""
    tokens, mask = padded_batch()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(tokens, attention_mask=mask, position_ids=positions).logits
    return out[mask.bool()]


def generated(model):
    tokens, mask = padded_batch()
    return model.generate(
        tokens, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=True
    )
