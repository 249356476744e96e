"""lucidrains' rotary-embedding-torch: its module and its functions.

Interleaved pairs; frequencies for text, for pixels, or of one's own, fixed or learned;
any number of axes; xPos. Lesson 20.
"""

from rope_teach.dialects.rotary_embedding_torch.functions import (
    apply_learned_rotations,
    apply_rotary_emb,
    broadcat,
)
from rope_teach.dialects.rotary_embedding_torch.module import RotaryEmbedding

__all__ = [
    "RotaryEmbedding",
    "apply_learned_rotations",
    "apply_rotary_emb",
    "broadcat",
]
