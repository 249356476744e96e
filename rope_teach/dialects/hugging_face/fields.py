"""A configuration's fields: read by name, checked, remembered as read. Lesson 20."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from rope_teach.dialects.hugging_face.families import DEFAULTS

# Names that may change the rotation. One that nobody read becomes a note.
SUSPECT = re.compile(r"rope|rotary|(^|_)ntk|yarn|alibi")
# Read by transformers for something other than the turn of a text token.
HARMLESS = re.compile(
    r"^(no_rope_layer_interval|qk_(nope|rope)_head_dim|alibi_bias_max|use_rope_kernel"
    r"|.*rope.*(config|dropout|feat_sizes|k_sizes)|(default_)?partial_rotary_factor"
    r"|default_rope_type|ignore_keys_at_rope_validation|qk_rope_\w+|compress_rope_theta"
    r"|use_mem_rope)$"
)


class Fields:
    """Look up a field by name: None where it is missing, or null.

    ``layer_type`` or ``layer`` say which layers are meant, for a configuration whose
    fields differ between them, as in Gemma 4.
    """

    def __init__(
        self, config: Any, layer_type: str | None, layer: int | None = None
    ) -> None:
        if isinstance(config, (str, bytes)) or not (
            isinstance(config, Mapping) or hasattr(config, "__dict__")
        ):
            raise TypeError(
                "config must be a configuration or its dictionary, got the "
                f"{'name' if isinstance(config, str) else type(config).__name__} "
                f"{config!r:.80}"
            )
        self.config, self.layer_type, self.layer = config, layer_type, layer
        self.read: set[str] = set()

    def __call__(self, name: str) -> Any:
        self.read.add(name)
        values = self._by_layer(name)
        if all(value is values[0] or value == values[0] for value in values):
            return values[0]
        raise ValueError(
            f"{name} differs between layers: give layer, or layer_type if it settles "
            f"it; got layer={self.layer} and layer_type={self.layer_type!r}"
        )

    def first(self, *names: str) -> Any:
        """The first of the fields, which mean the same, that has a value."""
        found = [self(name) for name in names]
        return next((value for value in found if value is not None), None)

    def _by_layer(self, name: str) -> list[Any]:
        """The values of the layers that are meant; one, where all layers are alike."""
        if isinstance(self.config, Mapping):
            own = self.config.get("per_layer_config") or {}
            default = self.config.get(name)
            if name not in self.config:
                default = DEFAULTS.get((str(self.config.get("model_type")), name))
            types = self.config.get("layer_types")
            own = {int(layer): fields for layer, fields in own.items()}
            count = len(types or ()) or max(own, default=-1) + 1 if own else 0
            layers = [own.get(layer, {}) for layer in range(count)]
            values = [layer.get(name, default) for layer in layers] or [default]
        elif getattr(self.config, "is_heterogeneous", False):
            types = getattr(self.config, "layer_types", None)
            values = [getattr(c, name, None) for c in self.config.per_layer_config]
        else:
            return [getattr(self.config, name, None)]
        if len(values) == 1:
            return values
        if self.layer is not None and self.layer < len(values):
            return [values[self.layer]]
        if self.layer_type is None or not types or self.layer_type not in types:
            return values
        pairs = zip(values, types, strict=False)
        return [value for value, kind in pairs if kind == self.layer_type]

    def unread(self) -> list[str]:
        """Fields with a value that sound like rotation, and that nobody looked up."""
        names = self.config if isinstance(self.config, Mapping) else vars(self.config)
        return sorted(
            name
            for name in names
            if SUSPECT.search(name)
            and name not in self.read
            and not name.startswith("_")
            and not HARMLESS.match(name)
            and names[name] not in (None, False, [], {})
        )


def number(
    name: str, value: Any, *, least: float = -math.inf, whole: bool = False
) -> Any:
    """``value`` as a number, or an error that names the configuration's field."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < least:
        wanted = "a number" + (f" of at least {least:g}" if least > -math.inf else "")
        raise (ValueError if real else TypeError)(
            f"the configuration's {name} must be {wanted}, got {value!r}"
        )
    if not whole:
        return float(value)
    if value != int(value):
        raise ValueError(
            f"the configuration's {name} must be a whole number, got {value!r}"
        )
    return int(value)


def numbers(name: str, value: Any, count: int) -> list[float]:
    """``count`` positive numbers, or an error that names the field."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"the configuration's {name} must be a list of numbers, got {value!r:.80}"
        )
    if len(value) != count:
        raise ValueError(
            f"the configuration's {name} must have rotary_dim / 2 = {count} numbers, "
            f"one a pair; got {len(value)}"
        )
    found = [number(f"{name}[{i}]", x) for i, x in enumerate(value)]
    for i, x in enumerate(found):
        if x <= 0:
            raise ValueError(
                f"the configuration's {name}[{i}] must be positive, got {x!r}"
            )
    return found
