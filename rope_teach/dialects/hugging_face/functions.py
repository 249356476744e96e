"""The functions by which transformers' models rotate."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rope_teach.checks import Layout, Pairing, check_choice
from rope_teach.ops import rotate
from rope_teach.pairing import half_table

Table = Literal["half", "interleaved", "single"]


def apply_rotary_pos_emb(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    unsqueeze_dim: int = 1,
    *,
    pairing: Pairing = "half",
    table: Table | None = None,
) -> tuple[Tensor, Tensor]:
    """Rotate as the function of this name in transformers' Llama.

    Parameters
    ----------
    q, k
        ``(batch, heads, seq, head_dim)`` with ``unsqueeze_dim=1``, ``(batch, seq,
        heads, head_dim)`` with 2. The numbers of heads may differ.
    cos, sin
        ``(batch, seq, r)``, each column twice, as a model's ``rotary_emb`` gives them;
        ``(batch, seq, r/2)`` with ``table="single"``. Features from ``r`` on pass
        unchanged.
    pairing
        Which features are rotated together: ``"interleaved"`` for Cohere, GLM, Helium,
        ERNIE 4.5 and the other families in :mod:`.families`.
    table
        How the tables repeat their columns (default: as ``pairing``): ``"half"``, the
        table twice, as Llama, and GLM, Helium and ERNIE, whose pairs are interleaved;
        ``"interleaved"``, each column twice in a row, as Cohere; ``"single"``, one
        column a pair, as GPT-OSS.

    Returns
    -------
    tuple of Tensor
        In the dtype of q and of k, rounded once. The original rounds three times in
        bfloat16, and returns float32 when the tables are.

    Raises
    ------
    ValueError
        If the tables were repeated in another way, or shapes do not fit. Where values
        cannot be looked at, in a compiled or exported graph, only shapes are checked.

    Notes
    -----
    Lesson 20.

    Examples
    --------
    >>> import torch
    >>> q = torch.randn(1, 8, 5, 64)
    >>> cos, sin = torch.ones(1, 5, 64), torch.zeros(1, 5, 64)
    >>> torch.equal(apply_rotary_pos_emb(q, q, cos, sin)[0], q)
    True
    """
    form = pairing if table is None else table
    check_choice("table", form, ("half", "interleaved", "single"))
    if form != "single":
        try:
            cos, sin = (half_table(full, form) for full in (cos, sin))
        except ValueError as error:
            raise ValueError(
                f"{error}; if it was repeated in another way than the pairs lie, as "
                f"GLM's, give table=; got pairing={pairing!r} and table={table!r}"
            ) from None
    return apply_tables(q, k, cos, sin, unsqueeze_dim, pairing=pairing)


def apply_tables(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    unsqueeze_dim: int = 1,
    *,
    pairing: Pairing,
) -> tuple[Tensor, Tensor]:
    """The same with tables of one column a pair, ``(batch, seq, r/2)``."""
    if unsqueeze_dim not in (1, 2):
        raise ValueError(f"unsqueeze_dim must be 1 or 2, got {unsqueeze_dim}")
    layout: Layout = "bhsd" if unsqueeze_dim == 1 else "bshd"
    return rotate(q, cos, sin, pairing, layout), rotate(k, cos, sin, pairing, layout)


def apply_rotary_pos_emb_gptj(
    tensor: Tensor, sin: Tensor, cos: Tensor, *, pairing: Pairing = "interleaved"
) -> Tensor:
    """Rotate as ``apply_rotary_pos_emb`` of transformers' GPT-J: note the order.

    ``tensor`` ``(batch, seq, heads, head_dim)``; ``sin`` and ``cos`` ``(batch, seq,
    r/2)``. Returns ``tensor``'s shape and dtype, rounded once. Lesson 20.

    >>> import torch
    >>> x = torch.tensor([[[[1.0, 0.0]]]])
    >>> apply_rotary_pos_emb_gptj(x, sin=torch.ones(1, 1, 1), cos=torch.zeros(1, 1, 1))
    tensor([[[[0., 1.]]]])
    """
    return rotate(tensor, cos, sin, pairing, "bshd")
