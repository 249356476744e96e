"""The weights of a model, from one pairing to the other."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from rope_teach.checks import Pairing, check_count
from rope_teach.pairing import convert_projection

# What lies between the input and the rotation, in transformers' words and in Meta's.
ROTATED = re.compile(
    r"(?:^|\.)(?:(?P<name>[qk]_proj|w[qk])|(?P<norm>[qk]_(?:norm|layernorm)))"
    r"\.(?P<kind>.+)$"
)
PLAIN = r"(?:norms\.\d+\.)?(?:weight|bias)"
FUSED = re.compile(
    r"(?:^|\.)(?:qkv_proj|query_key_value|c_attn|Wqkv|wqkv|qkv|kv_a_proj\w*|wkv_a)\."
)


def convert_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    head_dim: int,
    source: Pairing,
    target: Pairing,
    rotary_dim: int | None = None,
) -> dict[str, Tensor]:
    """Reorder all q and k weights of a model for the other pairing.

    Meta's Llama and GPT-J are ``"interleaved"``; Hugging Face's Llama and GPT-NeoX are
    ``"half"``. Names stay as they are. The model that takes the new weights must
    rotate by ``target``. :func:`rotary_embedding` reads ``head_dim``, ``rotary_dim``
    and the pairing from a configuration.

    Parameters
    ----------
    state_dict
        With ``q_proj`` and ``k_proj``, or Meta's ``wq`` and ``wk``, apart: weights,
        biases, and the norms of q and k. Not changed. Attention with other heads, as
        in a vision tower, must not be in it.
    head_dim
        Features of a head. It tells how many heads each tensor has, so that grouped
        keys are reordered by their own number.
    source, target
        The pairing that the weights were trained with, and the one wanted.
    rotary_dim
        Rotated features of each head (default: all).

    Returns
    -------
    dict
        All names of ``state_dict``; tensors that do not change are shared with it.

    Raises
    ------
    ValueError
        If no q or no k is found, or one is in a form that cannot be reordered: fused
        with v, as a latent or whole; quantized; or an adapter.

    Notes
    -----
    Source: the identity of :func:`rope_teach.convert_projection`. Lesson 20.

    Examples
    --------
    >>> import torch
    >>> state = {f"{name}_proj.bias": torch.arange(4) for name in "qkv"}
    >>> new = convert_checkpoint(state, head_dim=4, source="half", target="interleaved")
    >>> new["k_proj.bias"], new["v_proj.bias"]
    (tensor([0, 2, 1, 3]), tensor([0, 1, 2, 3]))
    """
    check_count("head_dim", head_dim)
    converted = dict(state_dict)
    found: set[str] = set()
    for name, tensor in state_dict.items():
        match = ROTATED.search(name)
        if match is None and not FUSED.search(name):
            continue
        if match is None or not re.fullmatch(PLAIN, match["kind"]):
            raise ValueError(
                f"{name} cannot be reordered: q and k must be apart from v, neither "
                "quantized nor an adapter (merge it first)"
            )
        rows = tensor.flatten() if match["norm"] else tensor
        if rows.shape[0] % head_dim:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} does not divide into heads of "
                f"head_dim={head_dim}"
            )
        heads = rows.shape[0] // head_dim
        rows = convert_projection(rows, heads, source, target, rotary_dim)
        converted[name] = rows.view_as(tensor)
        found.add(match["name"] or "a norm")
    if not ({"q_proj", "k_proj"} <= found or {"wq", "wk"} <= found):
        raise ValueError(
            "state_dict must have q_proj and k_proj, or wq and wk: the one is worth "
            f"nothing without the other; its {len(state_dict)} names have "
            f"{' and '.join(sorted(found)) or 'neither'}"
        )
    return converted
