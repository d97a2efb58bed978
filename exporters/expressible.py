"""The refusal of a model that a format cannot express, the same for every format."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.core.errors import UnsupportedError
from compressor.models.checkpoint import CONFIG_FILE


@dataclass(frozen=True, kw_only=True)
class Expressible:
    """What a format can express, asked field by field of `config.json`.

    Attributes:
        what: The format in a sentence, such as "a TensorRT-LLM checkpoint".
        option: What `export --format` calls it.
    """

    what: str
    option: str

    def expect(self, field: str, holds: bool, expected: object, found: object) -> None:  # noqa: FBT001
        """Refuse the model unless `holds`.

        Raises:
            UnsupportedError: naming the field, what it would have to be, and what it is.
        """
        if not holds:
            raise self.refusal(field, expected=expected, found=found)

    def refusal(
        self, field: str, *, expected: object = None, found: object = None, what: str | None = None
    ) -> UnsupportedError:
        """The error about this field; `what` replaces its sentence."""
        return UnsupportedError(
            what or f"{self.what} cannot express this model",
            where=f"{CONFIG_FILE}: {field}",
            expected=expected,
            found=found,
            hint=f"leave {self.option} out of the formats; vLLM, SGLang and newer TensorRT-LLM load "
            "huggingface (run --formats huggingface, export --format huggingface)",
        )
