"""What only the lessons use: figures, tasks, models, training, exercises.

The rest of the package needs only torch; this part needs the ``course`` extra.
"""

from importlib.util import find_spec

_NEEDED = (
    "IPython", "matplotlib", "numpy", "psutil", "safetensors", "tokenizers", "tqdm",
)  # fmt: skip
_MISSING = [name for name in _NEEDED if find_spec(name) is None]
if _MISSING:
    raise ModuleNotFoundError(
        f"rope_teach.course needs {', '.join(_MISSING)}; install them with: pip "
        "install 'rope-teach[course]'",
        name=_MISSING[0],
    )
