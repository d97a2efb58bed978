"""What a `config.json` says about its rotary embedding, in every form that checkpoints have.

Before transformers 5 the base is `rope_theta` and the method `rope_scaling`, whose kind is `rope_type` or
`type`; since then `rope_parameters` holds both. Classes fill in what is absent. Read from the sources of
transformers 4.57 and 5:

* 5 takes `rope_scaling` instead of `rope_parameters` where both are there, and the base from inside the
  one it takes, else from the top level, else 10000.
* For yarn, llama3 and longrope 5 takes `original_max_position_embeddings` from the top level, else from
  inside, else `max_position_embeddings`. 4.57 looks inside only for yarn and llama3, and at the top level
  only for longrope, whose factor then is the ratio of the two lengths, whatever `factor` says.
* 4.57 does not know `rope_parameters`, and its Nemotron no scaling at all. A base inside `rope_scaling` was
  never read by it, so a config that has one there was written for 5.

A config that the two generations compute differently, or whose fields contradict each other, is refused:
which of the readings its author tested cannot be told.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from compressor.core.errors import UnsupportedError
from compressor.models.families import FAMILIES, Family

DEFAULT_THETA = 10_000.0
THETA, FRACTION, ORIGINAL = "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"
SCALING, PARAMETERS = "rope_scaling", "rope_parameters"
FIRST_WITH_PARAMETERS = 5

# Method -> the numbers it cannot do without, of those that neither generation fills in.
_REQUIRED: dict[str, tuple[str, ...]] = (
    dict.fromkeys(("default", "yarn", "longrope"), ())
    | dict.fromkeys(("linear", "dynamic"), ("factor",))
    | dict.fromkeys(("llama3",), ("factor", "low_freq_factor", "high_freq_factor"))
)
_WITH_ORIGINAL = ("yarn", "llama3", "longrope")
_NUMBERS = (
    *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    *("low_freq_factor", "high_freq_factor", ORIGINAL),
)


@dataclass(frozen=True, kw_only=True)
class Rope:
    """A rotary embedding, whatever the spelling it was given in.

    Attributes:
        theta: The base, as its file writes it.
        fraction: Which part of every head is rotated; None where the family always rotates all of it.
        method: `rope_type` and the method's numbers, complete, as `rope_parameters` holds them.
    """

    theta: float
    fraction: float | None
    method: Mapping[str, object]

    @property
    def kind(self) -> str:
        """The method's name."""
        return str(self.method["rope_type"])

    def factors(self, name: str) -> list[float]:
        """One of longrope's two lists, a factor per frequency; empty for other methods."""
        values = self.method.get(name)
        return values if isinstance(values, list) else []


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a config is a finite number; a whole one may be too large for that."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def has_rope(config: Mapping[str, object]) -> bool:
    """Whether a config is of a family with rotary embeddings, or names one."""
    return config.get("model_type") in FAMILIES or any(config.get(k) for k in (THETA, SCALING, PARAMETERS))


def rope_of(config: Mapping[str, object]) -> Rope:
    """Read the rope of a config.

    Raises:
        UnsupportedError: for a method or a number that cannot be used, or fields that contradict each other.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    scaling, parameters = _mapping(config, SCALING), _mapping(config, PARAMETERS)
    holders = {SCALING: scaling, PARAMETERS: parameters}
    theta = _agreed(THETA, config, holders, default=DEFAULT_THETA)
    fraction = _agreed(FRACTION, config, holders, default=family.rotary_fraction if family else None)
    methods = {name: _method(given, name) for name, given in holders.items() if given}
    complete = {name: _complete(method, name, config, family) for name, method in methods.items()}
    if len(complete) == len(holders) and complete[SCALING] != complete[PARAMETERS]:
        what = "rope_scaling and rope_parameters contradict each other"
        found = f"{scaling} and {parameters}"
        raise _refused(what, expected="the same rope in both", found=found)
    method = next(iter(complete.values()), {"rope_type": "default"})
    if family and method["rope_type"] != "default" and not family.scales_rope_before_5 and not parameters:
        raise _refused(
            f"transformers 4.57 ignores {SCALING} for {family.model_type} models, and 5 does not",
            where=SCALING,
            expected=f"null, or {PARAMETERS}",
            found=scaling,
        )
    return Rope(theta=theta, fraction=fraction, method=method)


def rope_fields(config: Mapping[str, object]) -> dict[str, object]:
    """The fields that say a config's rope to both generations, beside what it says already; see `rope_of`."""
    rope = rope_of(config)
    fields: dict[str, object] = {THETA: rope.theta, SCALING: None}
    inside = {THETA: rope.theta, **rope.method}
    if rope.fraction is not None:
        fields[FRACTION] = inside[FRACTION] = rope.fraction
    if rope.kind != "default":
        given = _mapping(config, SCALING)
        missing = {name: value for name, value in rope.method.items() if given.get(name) is None}
        if "type" in given:
            missing.pop("rope_type", None)
        fields[SCALING] = {**given, **missing}
    family = FAMILIES.get(str(config.get("model_type")))
    if rope.kind == "longrope" and rope.method[ORIGINAL] != _context(config, family):
        fields[ORIGINAL] = rope.method[ORIGINAL]
    return {**fields, PARAMETERS: inside}


def refuse_misread_rope(config: Mapping[str, object], *, where: str) -> None:
    """Refuse a config whose rope the installed transformers would silently compute otherwise.

    Raises:
        UnsupportedError: under transformers before 5, for what only `rope_parameters` says.
    """
    from transformers import __version__

    if int(__version__.split(".")[0]) >= FIRST_WITH_PARAMETERS or _read_alike_before_5(config):
        return
    raise UnsupportedError(
        f"transformers {__version__} would misread the rope settings of this config",
        where=where,
        expected=f"{rope_of(config).method} in {SCALING}, read by this family's class",
        hint="install transformers 5, or write the config again under it with export --format huggingface",
    )


def _read_alike_before_5(config: Mapping[str, object]) -> bool:
    rope = rope_of(config)
    family = FAMILIES.get(str(config.get("model_type")))
    if rope.kind != "default" and family and not family.scales_rope_before_5:
        return False
    if config.get(SCALING) == {}:
        return False  # 5 takes it for none; the older validation stops at it
    given = _mapping(config, SCALING)
    scaling = {name: value for name, value in given.items() if name not in (THETA, FRACTION)}
    older = {name: value for name, value in config.items() if name != PARAMETERS} | {SCALING: scaling}
    try:
        return rope_of(older) == rope
    except UnsupportedError:
        return False


def _mapping(config: Mapping[str, object], name: str) -> dict[str, object]:
    given = config.get(name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _refused(f"{name} is not a mapping", expected="{...}", found=given)
    layers = [key for key, value in given.items() if isinstance(value, dict)]
    if layers:
        raise _refused(
            "a rope of its own for every type of layer is not supported",
            where=name,
            expected="one rope for all layers",
            found=", ".join(layers),
        )
    return given


def _agreed(
    name: str,
    config: Mapping[str, object],
    holders: Mapping[str, Mapping[str, object]],
    *,
    default: float | None,
) -> Any:
    """The one value of a field that may stand at the top level and inside; equal wherever it stands."""
    places = {"the top level": config, **holders}
    given = {place: held[name] for place, held in places.items() if name in held}
    values = {place: value for place, value in given.items() if value is not None}
    for place, value in values.items():
        _require_number(value, f"{name} at {place}")
    if len(set(values.values())) > 1:
        raise _refused(
            f"the config gives {name} twice, differently",
            expected="one value",
            found=", ".join(f"{value} at {place}" for place, value in values.items()),
        )
    if given and not values and default is not None:
        # The classes take null for a number, not for their default.
        raise _refused(f"{name} is null", expected="a number, or no such field")
    return next(iter(values.values()), default)


def _method(given: Mapping[str, object], where: str) -> dict[str, object]:
    """A method under its newer name, without what is not the method's own and without nulls."""
    kinds = {key: given[key] for key in ("rope_type", "type") if key in given}
    numbers = {key for key in given if key not in ("rope_type", "type", THETA, FRACTION)}
    if len(set(map(str, kinds.values()))) > 1 or (not kinds and numbers):
        what = f"{where} does not say one method"
        raise _refused(what, expected="rope_type, or type, or both alike", found=given)
    kind = next(iter(kinds.values()), "default")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise _refused(
            f"rope type {kind!r} is not computed alike by transformers 4.57 and 5",
            where=where,
            expected=", ".join(sorted(_REQUIRED)),
        )
    method = {"rope_type": kind, **{key: given[key] for key in given if key in numbers}}
    if "truncate" in method and method["truncate"] is None:
        method["truncate"] = False  # null counts as false, unlike the absent field
    method = {key: value for key, value in method.items() if value is not None}
    for name in _NUMBERS:
        if name in method:
            _require_number(method[name], f"{where}.{name}")
    for name in _REQUIRED[kind]:
        if name not in method:
            raise _refused(f"{where} lacks {name}", expected=f"{name} of {kind}")
    return method


def _complete(
    method: dict[str, object], where: str, config: Mapping[str, object], family: Family | None
) -> dict[str, object]:
    """A method with the numbers that the classes would derive from other fields."""
    kind = method["rope_type"]
    if kind not in _WITH_ORIGINAL:
        return method
    if config.get(ORIGINAL) is not None:
        _require_number(config[ORIGINAL], ORIGINAL)
    outside, inside = _number(config, ORIGINAL), _number(method, ORIGINAL)
    if outside is not None and inside is not None and outside != inside:
        raise _refused(
            f"the config gives {ORIGINAL} twice, differently",
            found=f"{outside} at the top level, {inside} in {where}",
        )
    if kind != "longrope" and inside is not None and "factor" in method:
        return method
    context = _context(config, family)
    original = inside if inside is not None else outside if outside is not None else context
    older = where == SCALING and not config.get(PARAMETERS)
    if older and kind == "yarn" and inside is None and original != context:
        raise _two_readings(f"{original} by 5, {context} by 4.57", ORIGINAL, "in rope_scaling too")
    method = {**method, ORIGINAL: original}
    if kind == "longrope":
        return _complete_longrope(method, original, context, older=older, outside=outside is not None)
    return {**method, "factor": method.get("factor", context / original)}


def _complete_longrope(
    method: dict[str, object], original: float, context: float, *, older: bool, outside: bool
) -> dict[str, object]:
    for name in ("short_factor", "long_factor"):
        values = method.get(name)
        if not isinstance(values, list) or not values:
            raise _refused(f"longrope lacks {name}", expected="a list of numbers")
        for value in values:
            _require_number(value, name)
    factor = _number(method, "factor")
    if original <= 1:  # its logarithm divides
        raise _refused(f"longrope needs an {ORIGINAL} above 1", where=ORIGINAL, found=original)
    if original == context:
        return method
    known = factor is not None or "attention_factor" in method
    if older and not outside and known:
        raise _two_readings(f"{original} by 5, {context} by 4.57", ORIGINAL, "at the top level")
    if factor is None or "attention_factor" in method or math.isclose(factor, context / original):
        return method
    if older:
        found = f"{factor} by 5, {context / original} by 4.57"
        raise _two_readings(found, "factor", f"max_position_embeddings / {ORIGINAL}, or no factor")
    # 4.57 takes the ratio of the lengths for the factor, so what 5 makes of the factor is written out.
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {**method, "attention_factor": attention}


def _context(config: Mapping[str, object], family: Family | None) -> float:
    default = family.defaults.get("max_position_embeddings") if family else None
    value = config.get("max_position_embeddings", default)
    _require_number(value, "max_position_embeddings")
    return cast(float, value)


def _number(fields: Mapping[str, object], name: str) -> float | None:
    """A number that was found usable before; None where there is none."""
    value = fields.get(name)
    return value if is_number(value) else None


def _two_readings(found: str, field: str, expected: str) -> UnsupportedError:
    what = f"transformers 4.57 and 5 read {field} of this config differently"
    return _refused(what, expected=expected, found=found)


def _require_number(value: object, where: str) -> None:
    """Refuse all but positive finite numbers; `mscale` may be 0, which both generations read as absent."""
    if not is_number(value) or value < 0 or (value == 0 and "mscale" not in where):
        what = "a rope field has no usable value"
        raise _refused(what, where=where, expected="a number above 0", found=value)


def _refused(
    what: str, *, where: str | None = None, expected: object = None, found: object = None
) -> UnsupportedError:
    return UnsupportedError(
        what,
        where=f"config.json: {where}" if where else "config.json",
        expected=expected,
        found=found,
        hint="correct this field to what the model was trained with, if you know it",
    )
