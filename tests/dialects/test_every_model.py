"""Every causal language model of transformers that can be built small.

Its weights are converted to the other pairing and its rotation swapped for ours, or
either is refused: never does it say something else.
"""

import copy
import logging
import warnings
from collections import Counter

import torch

from rope_teach.dialects.hugging_face import (
    convert_checkpoint,
    rotary_embedding,
    swap,
)
from tests.dialects import peers  # skips where transformers is not installed

SIZES = {
    **peers.SIZES, "head_dim": 8, "max_position_embeddings": 128,
    "num_experts": 2, "num_experts_per_tok": 1, "num_local_experts": 2,
    "moe_intermediate_size": 8, "n_routed_experts": 2, "n_group": 1, "topk_group": 1,
    "shared_expert_intermediate_size": 8, "embed_dim": 32, "ffn_dim": 32,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "n_embd": 32, "n_head": 4, "n_layer": 2,
    "rotary_dim": 4, "initializer_range": 0.02,
}  # fmt: skip
TOKENS = torch.randint(3, 50, (2, 12), generator=torch.Generator().manual_seed(0))
LARGEST = 2_000_000  # parameters; more do not follow the sizes that are asked for


def model_types():
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names,
    )

    return sorted(names)


def built(model_type):
    """A small random model, or None where these sizes do not make one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(model_type, **copy.deepcopy(SIZES))
        layers = getattr(config, "num_hidden_layers", 2) or 2
        if layers > 12 or getattr(config, "hidden_size", 32) > 256:
            return None
        with torch.device("meta"):
            meta = AutoModelForCausalLM.from_config(config)
        if sum(p.numel() for p in meta.parameters()) > LARGEST:
            return None
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases too
                parameter.add_(0.15 * torch.randn_like(parameter))
        said(model)
    except Exception:  # it wants other sizes, or a library
        return None
    return model


@torch.no_grad()
def said(model):
    return model(input_ids=TOKENS, use_cache=False).logits


def tried(model):
    """What became of it, and how far its logits moved."""
    before = said(model)
    parameters = getattr(model.config, "rope_parameters", None) or {}
    kinds = [kind for kind, value in parameters.items() if isinstance(value, dict)]
    try:
        rope = rotary_embedding(model.config, kinds[0] if kinds else None)
    except ValueError:
        return "has no rotation that is read", 0.0
    other = "half" if rope.pairing == "interleaved" else "interleaved"
    ours = copy.deepcopy(model)
    try:
        swap(ours)
    except ValueError:
        return "swap refuses", (said(ours) - before).abs().max().item()
    moved = (said(ours) - before).abs().max().item()
    try:
        state = convert_checkpoint(
            model.state_dict(),
            head_dim=rope.head_dim,
            rotary_dim=rope.rotary_dim,
            source=rope.pairing,
            target=other,
        )
    except ValueError:
        return "swapped, and convert_checkpoint refuses", moved
    model.load_state_dict(state)
    swap(model, pairing=other)
    moved = max(moved, (said(model) - before).abs().max().item())
    return "swapped and converted", moved / max(1.0, before.std().item())


def test_no_model_says_something_else_without_an_error():
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    found, wrong = Counter(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model_type in model_types():
            model = built(model_type)
            if model is None:
                continue
            what, moved = tried(model)
            found[what] += 1
            if not moved < 2e-3:
                wrong[model_type] = (what, moved)
    assert not wrong
    print(found)
    assert found["swapped and converted"] >= 60
