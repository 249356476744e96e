"""rope_teach: how a transformer knows where its tokens are.

These names are what most users need; the modules beside this file have the rest, such
as the rules for longer context (``frequencies``) and images (``axes``). Torch is all
that they need. `README.md` has the lessons.
"""

from rope_teach.absolute import (
    LearnedEncoding,
    SinusoidalEncoding,
    alibi_bias,
    sinusoidal,
)
from rope_teach.frequencies import inverse_frequencies, wavelengths
from rope_teach.ops import rotate
from rope_teach.pairing import (
    convert_projection,
    half_to_interleaved,
    interleaved_to_half,
)
from rope_teach.rotary import RotaryEmbedding
from rope_teach.rotation import rotate_complex, rotate_matrix
from rope_teach.tables import angles, cos_sin, phases

__version__ = "0.2.0.dev0"

__all__ = [
    "LearnedEncoding",
    "RotaryEmbedding",
    "SinusoidalEncoding",
    "alibi_bias",
    "angles",
    "convert_projection",
    "cos_sin",
    "half_to_interleaved",
    "interleaved_to_half",
    "inverse_frequencies",
    "phases",
    "rotate",
    "rotate_complex",
    "rotate_matrix",
    "sinusoidal",
    "wavelengths",
]
