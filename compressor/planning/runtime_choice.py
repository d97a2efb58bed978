"""What executes the models of a run's benchmark: named by the recipe, or what this machine has. No torch.

A recipe is settled once, before anything is planned. What it then says of runtime, device and engines is what
its default formats, its stages and `verify` go by.
"""

from __future__ import annotations

from compressor.choices.runtimes import AUTO, NONE, Device, Runtime, runtime_on_this_machine
from compressor.core.errors import UsageError
from compressor.core.hardware import GPUS, cpu_name, driver_sees_gpu, torch_sees_gpu
from compressor.core.records import Record
from compressor.recipe.recipe import Recipe


class RuntimeChoice(Record):
    """What measures the models, and why.

    Attributes:
        name: Its row in the table of runtimes, or `none`.
        device: What executes the models.
        engines: Whether TensorRT engines are built and measured.
        reason: Why it was taken.
        machine: The machine that this is planned for.
        is_assumed: Whether nobody named a runtime or a GPU: then it is this machine.
    """

    name: str
    device: Device | None = None
    engines: bool = False
    reason: str
    machine: str
    is_assumed: bool = False

    @property
    def what(self) -> str:
        """What is measured with it, in words."""
        if self.name == NONE:
            return NONE
        return f"{self.name}{', engines' if self.engines else ''} on {self.device}"


def choose_runtime(recipe: Recipe, *, gpu: str | None = None) -> RuntimeChoice:
    """The runtime of a recipe's benchmark on this machine, or on one like it with the `gpu` that is named.

    Raises:
        UsageError: for engines of a runtime that runs none, series of one that has its own, or a device that
            this machine does not have.
        DependencyError: when nothing on this machine can measure.
    """
    bench = recipe.bench
    machine = f"a machine with {GPUS[gpu].name}" if gpu in GPUS else "this machine"
    if not bench.is_measured:
        return RuntimeChoice(name=NONE, reason="--runtime none", machine=machine)
    if bench.runtime == AUTO:
        row, reason = runtime_on_this_machine(has_gpu=gpu is not None or torch_sees_gpu())
        reason = reason if gpu is None else f"{reason} (programs are looked for on this machine)"
    else:
        row, reason = bench.row, "named by --runtime or the recipe"
    bench.require_series(row)
    is_here = row.missing() is None
    if bench.runtime != AUTO and not is_here:
        machine = f"{machine if gpu in GPUS else 'a machine'} that has {row.name}, which this one has not"
    device = _device(row, gpu)
    if bench.device not in (None, device):
        raise UsageError(
            "the recipe's benchmark was made for another device than this machine has",
            where="bench.device",
            expected=device,
            found=bench.device,
            hint="leave bench.device out of the recipe: it follows from the machine",
        )
    return RuntimeChoice(
        name=row.name,
        device=device,
        engines=_has_engines(recipe, row, is_here=is_here),
        reason=reason,
        machine=machine if machine != "this machine" or device == "cuda" else f"this machine ({cpu_name()})",
        is_assumed=bench.runtime == AUTO and gpu is None,
    )


def _device(row: Runtime, gpu: str | None) -> Device:
    """What executes a model in a runtime here, or where there is the `gpu`.

    A program of its own may see one that the torch of this package does not.
    """
    if len(row.devices) == 1:
        return row.devices[0]
    sees_gpu = gpu is not None or (driver_sees_gpu() if row.executable else torch_sees_gpu())
    return "cuda" if sees_gpu and "cuda" in row.devices else "cpu"


def _has_engines(recipe: Recipe, row: Runtime, *, is_here: bool) -> bool:
    """As the recipe says; else where they can be built, and of a runtime that is elsewhere."""
    asked = recipe.bench.engines
    if asked and row.engines is None:
        raise UsageError(
            f"{row.name} runs no engines",
            where="bench.engines",
            expected="false",
            found="true",
            hint="leave bench.engines out, or use --runtime tensorrt-llm",
        )
    if row.engines is not None and row.reads == row.engines:
        if asked is False:
            raise UsageError(
                f"{row.name} runs nothing but engines",
                where="bench.engines",
                expected="true",
                found="false",
                hint="leave bench.engines out, or choose another --runtime",
            )
        return True
    if asked is not None or row.engines is None:
        return bool(asked)
    return row.builds_here() if is_here else True


def with_runtime(recipe: Recipe, choice: RuntimeChoice) -> Recipe:
    """The recipe as it was settled: with what executes the models, and samples text, instead of auto."""
    chosen = {
        "runtime": choice.name,
        "device": choice.device,
        "engines": choice.engines if choice.engines or recipe.bench.engines is not None else None,
    }
    settled: dict[str, object] = {"bench": recipe.bench.model_copy(update=chosen)}
    if recipe.distill.generate.tokens:
        generate = recipe.distill.generate.settled()
        settled["distill"] = recipe.distill.model_copy(update={"generate": generate})
    return recipe.model_copy(update=settled)
