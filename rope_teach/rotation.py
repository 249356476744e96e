"""The rotation in its three readable forms: real pairs, complex numbers, a matrix.

Two pairings say which two features form a pair:

``"interleaved"``  pairs (0, 1) (2, 3) ...          RoFormer, GPT-J, Meta's Llama
``"half"``         pairs (0, r/2) (1, r/2 + 1) ...  GPT-NeoX, Hugging Face's Llama

The sign is +angle, counter-clockwise: (a, b) -> (a cos - b sin, a sin + b cos).
Built in lessons 04 (one pair), 05 (real), 06 (complex) and 07 (pairings).
:mod:`rope_teach.ops` computes the real form as fast as the hardware allows; compilers,
transforms and gradients of tables follow the formula here, and tests compare with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rope_teach.checks import (
    Layout,
    Pairing,
    align_table,
    check_choice,
    check_floating,
    wrong_shape,
    wrong_type,
)

__all__ = ["rotate_complex", "rotate_matrix", "rotate_pairs", "rotation_matrix"]


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """Rotate the pairs of ``x`` as the formula is written: ``(a c - b s, a s + b c)``.

    ``x`` ``(..., head_dim)``; ``cos`` and ``sin`` ``(..., r/2)`` broadcast against its
    pairs. Features from ``r`` on pass unchanged. The arithmetic is done in the wider
    of the dtypes, float32 at least, and rounded once. :func:`rope_teach.rotate` is
    the same with checks, and faster.

    Source: RoFormer (2104.09864), equation 34. Lessons 05 and 07.

    >>> cos, sin = torch.tensor([0.0]), torch.tensor([1.0])  # a quarter turn
    >>> rotate_pairs(torch.tensor([1.0, 2.0]), cos, sin, "interleaved")
    tensor([-2.,  1.])
    """
    head, rest = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    wide = widest(x, cos)
    head, cos, sin = head.to(wide), cos.to(wide), sin.to(wide)
    if pairing == "interleaved":
        # Not unflatten and flatten, which is_grads_batched has no rules for.
        a, b = head.reshape(*head.shape[:-1], cos.shape[-1], 2).unbind(-1)
    else:
        a, b = head.chunk(2, dim=-1)
    # Rounded before they are joined: a compiler would store the join in float32.
    first, second = (a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)
    if pairing == "interleaved":
        turned = torch.stack([first, second], dim=-1).reshape(head.shape)
    else:
        turned = torch.cat([first, second], dim=-1)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def widest(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float64 where any tensor has it, else float32."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def rotate_complex(x: Tensor, phases: Tensor, layout: Layout = "bhsd") -> Tensor:
    """Rotate interleaved pairs as complex numbers: one multiplication.

    ``x`` and the result are as in :func:`rope_teach.rotate`; ``phases`` is complex,
    with the shapes that ``cos`` has there. 16-bit inputs are multiplied in float32,
    since torch has no complex bfloat16. Lesson 06.

    >>> from rope_teach import phases
    >>> turn = phases(torch.tensor([1]), torch.tensor([1.0, 0.01]))
    >>> rotate_complex(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), turn)
    tensor([[-1.1426,  1.9221,  2.9599,  4.0298]])
    """
    check_floating("x", x)
    if not isinstance(phases, Tensor) or not phases.is_complex():
        raise wrong_type("phases", "a complex tensor (see rope_teach.phases)", phases)
    phases = align_table(phases, x, layout)
    head, rest = x.tensor_split([2 * phases.shape[-1]], dim=-1)
    wide = head.to(torch.promote_types(x.dtype, phases.real.dtype))
    if torch.compiler.is_compiling() or not holds_complex(wide):
        wide = wide.clone(memory_format=torch.contiguous_format)
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * phases
    rotated = torch.view_as_real(turned).flatten(-2).to(x.dtype)
    return torch.cat([rotated, rest], dim=-1) if rest.shape[-1] else rotated


def holds_complex(x: Tensor) -> bool:
    """Whether the pairs of ``x`` can be viewed as complex numbers without a copy."""
    steps = (x.shape[-1], *x.stride()[:-1], x.storage_offset())
    return x.stride(-1) == 1 and all(step % 2 == 0 for step in steps)


def rotation_matrix(angles: Tensor, pairing: Pairing = "interleaved") -> Tensor:
    """The textbook matrix: one 2 x 2 rotation for each pair, zeros elsewhere.

    ``angles`` ``(..., r/2)`` in radians gives ``(..., r, r)`` in their dtype. The
    blocks lie on the diagonal for ``"interleaved"``. For teaching, and as the
    oracle of the tests. Source: RoFormer, equation 15. Lessons 04 and 05.

    >>> rotation_matrix(torch.tensor([1.0]))
    tensor([[ 0.5403, -0.8415],
            [ 0.8415,  0.5403]])
    """
    check_choice("pairing", pairing, ("interleaved", "half"))
    check_floating("angles", angles)
    if not angles.ndim:
        raise wrong_shape("angles", "(..., r/2)", angles)
    pairs = angles.shape[-1]
    i = torch.arange(pairs, device=angles.device)
    a, b = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + pairs)
    matrix = angles.new_zeros(*angles.shape[:-1], 2 * pairs, 2 * pairs)
    matrix[..., a, a] = matrix[..., b, b] = angles.cos()
    matrix[..., b, a] = angles.sin()
    matrix[..., a, b] = -angles.sin()
    return matrix


def rotate_matrix(
    x: Tensor, angles: Tensor, pairing: Pairing = "interleaved", layout: Layout = "bhsd"
) -> Tensor:
    """Rotate by a full matrix product: slow, obvious, and the oracle.

    ``x`` as in :func:`rope_teach.rotate`; ``angles`` in radians, with the shapes that
    ``cos`` has there. Lesson 05.

    >>> rotate_matrix(torch.tensor([[1.0, 0.0]]), torch.tensor([[torch.pi / 2]]))
    tensor([[-4.3711e-08,  1.0000e+00]])
    """
    check_floating("x", x)
    check_floating("angles", angles)
    matrix = rotation_matrix(align_table(angles, x, layout), pairing)
    head, rest = x.tensor_split([matrix.shape[-1]], dim=-1)
    wide = torch.promote_types(x.dtype, matrix.dtype)
    rotated = matrix.to(wide) @ head.to(wide).unsqueeze(-1)
    return torch.cat([rotated.squeeze(-1).to(x.dtype), rest], dim=-1)
