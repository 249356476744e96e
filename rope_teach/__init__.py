"""rope_teach: how a transformer knows where its tokens are.

The package under the course; `README.md` has the lessons. Torch is all it needs.
"""

from rope_teach.absolute import (
    LearnedEncoding,
    SinusoidalEncoding,
    alibi_bias,
    alibi_slopes,
    sinusoidal,
)
from rope_teach.axes import (
    axial_frequencies,
    constant_frequencies,
    grid_positions,
    mixed_frequencies,
    multimodal_frequencies,
    multimodal_positions,
    pixel_frequencies,
    pixel_positions,
)
from rope_teach.frequencies import (
    dynamic_ntk,
    inverse_frequencies,
    llama3,
    longrope,
    ntk_aware,
    position_interpolation,
    proportional,
    wavelengths,
    yarn,
)
from rope_teach.rotary import RotaryEmbedding
from rope_teach.rotation import (
    angles,
    convert_projection,
    cos_sin,
    full_table,
    half_table,
    half_to_interleaved,
    interleaved_to_half,
    phases,
    rotate,
    rotate_complex,
    rotate_matrix,
    rotation_matrix,
    xpos_scale,
)

__version__ = "0.1.0"

__all__ = [
    "LearnedEncoding",
    "RotaryEmbedding",
    "SinusoidalEncoding",
    "alibi_bias",
    "alibi_slopes",
    "angles",
    "axial_frequencies",
    "constant_frequencies",
    "convert_projection",
    "cos_sin",
    "dynamic_ntk",
    "full_table",
    "grid_positions",
    "half_table",
    "half_to_interleaved",
    "interleaved_to_half",
    "inverse_frequencies",
    "llama3",
    "longrope",
    "mixed_frequencies",
    "multimodal_frequencies",
    "multimodal_positions",
    "ntk_aware",
    "phases",
    "pixel_frequencies",
    "pixel_positions",
    "position_interpolation",
    "proportional",
    "rotate",
    "rotate_complex",
    "rotate_matrix",
    "rotation_matrix",
    "sinusoidal",
    "wavelengths",
    "xpos_scale",
    "yarn",
]
