"""The recipe's section about how models are evaluated: perplexity, tasks of lm-eval, and chat."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, model_validator

from compressor.choices.tasks import TASK_SETS, expand_tasks
from compressor.recipe.forms import parse_names, written
from compressor.recipe.option import Section, option


def _expandable(specs: tuple[str, ...]) -> tuple[str, ...]:
    expand_tasks(specs)
    return specs


Tasks = Annotated[tuple[str, ...], written(parse_names), AfterValidator(_expandable)]
_SETS = "; ".join(f"{name}: {chosen.help}" for name, chosen in TASK_SETS.items())


class Evaluate(Section):
    """Perplexity on held-out text: non-overlapping sequences, no BOS token; tasks of lm-eval; and chat."""

    heading: ClassVar[str] = "Export and benchmark"
    prefix: ClassVar[str] = "eval"

    data: str | None = option(
        None,
        "Text to measure perplexity on; in a run by default the held-out part of the training text.",
        metavar="SOURCE",
    )
    seq_len: int = option(1024, "Tokens per evaluated sequence.", ge=8)
    size: int = option(64, "Number of evaluated sequences.", ge=1)
    exports: bool = option(
        default=False,
        text="Measure the exported ONNX graphs too, as they compute: ONNX Runtime runs them on the CPU.",
    )
    tasks: Tasks = option(
        (),
        "Tasks of lm-eval to measure, each NAME or NAME:SHOTS, or a named set of them; needs pip install "
        f"'compress-export[lm-eval]'. {_SETS}.",
        metavar="NAME,...",
    )
    task_dir: str | None = option(
        None,
        "Directory with task definitions of one's own, in lm-eval's YAML, beside those that lm-eval brings.",
        metavar="DIR",
    )
    limit: int | None = option(None, "Number of items of each task to measure; by default all.", ge=1)
    chat_template: bool = option(
        default=False, text="Put the items of tasks into the model's chat template, examples as turns."
    )
    task_batch_size: int = option(8, "Number of a task's requests that are computed at once.", ge=1)
    chat_data: str | None = option(
        None,
        "Conversations to measure chat quality on, rendered through the model's chat template: perplexity of "
        "the assistant's turns, and greedy replies to the last turn of the user.",
        metavar="SOURCE",
    )
    chat_size: int = option(32, "Number of conversations to measure chat quality on.", ge=2)
    chat_max_tokens: int = option(128, "Number of tokens after which a reply to a conversation is cut.", ge=8)

    @model_validator(mode="after")
    def _settings_of_tasks(self) -> Evaluate:
        usual = {"task_dir": None, "limit": None, "chat_template": False, "task_batch_size": 8}
        idle = [name for name, value in usual.items() if getattr(self, name) != value]
        if idle and not self.tasks:
            raise ValueError(f"{', '.join(idle)} are about tasks, and none is named")
        return self

    @model_validator(mode="after")
    def _settings_of_chat(self) -> Evaluate:
        idle = [
            name
            for name in ("chat_size", "chat_max_tokens")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if idle and self.chat_data is None:
            raise ValueError(f"{', '.join(idle)} are about conversations, and chat_data names none")
        return self
