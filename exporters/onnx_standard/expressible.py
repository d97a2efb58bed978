"""What a graph of standard operators cannot express, and its refusal before any work."""

from __future__ import annotations

from compressor.models.config.class_defaults import value_of
from compressor.models.dims import dims_of_config
from compressor.models.families import family_of
from exporters.expressible import Expressible
from exporters.onnx.expressible import FIXED, rope_form

_FORMAT = Expressible(what="a graph of standard ONNX operators", option="onnx-standard")


def check_expressible(config: dict[str, object]) -> None:
    """Refuse (UnsupportedError) a model whose graph would compute something else, from its config.

    A graph turns every channel by one fixed frequency and factor; dynamic and longrope choose theirs by the
    length of the sequence.
    """
    dims_of_config(config)
    family = family_of(str(config.get("model_type")))
    _FORMAT.expect("rope_scaling", (form := rope_form(config)) in FIXED, " or ".join(FIXED), form)
    activation = value_of(config, "hidden_act")
    _FORMAT.expect("hidden_act", activation == family.activation, family.activation, activation)
