"""Hugging Face transformers: its rotation, configurations, models and checkpoints.

Nothing here imports transformers: a configuration or a model that you have loaded is
all that is needed. Lesson 20.
"""

from rope_teach.dialects.hugging_face.checkpoint import convert_checkpoint
from rope_teach.dialects.hugging_face.configuration import (
    ConfigurationWarning,
    rotary_embedding,
)
from rope_teach.dialects.hugging_face.functions import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_gptj,
)
from rope_teach.dialects.hugging_face.models import swap

__all__ = [
    "ConfigurationWarning",
    "apply_rotary_pos_emb",
    "apply_rotary_pos_emb_gptj",
    "convert_checkpoint",
    "rotary_embedding",
    "swap",
]
