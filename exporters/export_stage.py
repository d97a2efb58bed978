"""The stages `export-<format>`: each writes one format, verifies it and records how."""

from __future__ import annotations

from pathlib import Path

from compressor.models.checkpoint import read_config
from compressor.models.memory import require_model_memory
from compressor.models.sparse.low_rank import refuse_adapter
from compressor.models.sparse.record import carry_sparsity, read_sparsity
from compressor.recipe.option import content_of, unless_neutral
from compressor.recipe.recipe import EdgeLLM, Export
from compressor.runs.artifact import ModelArtifact
from compressor.runs.stage import Stage, StageContext, StageResult, start_afresh
from exporters.registry import exporter_of
from exporters.verification.logits import VerifyOptions
from exporters.verification.record import details_of, write_verification


def export_stage(name: str) -> Stage[Export]:
    """The stage `export-<format>`: writes the format, verifies it, and leaves `verification.json`.

    Its source is the 16-bit student; for FP8 the quantize stage's artifact. Engines are built last, of
    checkpoints that passed.
    """
    exporter = exporter_of(name)

    def run(config: Export, source: ModelArtifact, out_dir: Path, context: StageContext) -> StageResult:
        exporter.check(read_config(source.path), config, read_sparsity(source.path))
        start_afresh(out_dir)
        options = VerifyOptions(
            console=context.console,
            device=context.device,
            trust_remote_code=context.trust_remote_code,
            export=config,
        )
        if not exporter.keeps_adapter:
            refuse_adapter(source.path, by=f"the {name} export")
        exporter.write(source.path, out_dir, options)
        carry_sparsity(source.path, out_dir)
        verification = exporter.verify(out_dir, source.path, options)
        checks = verification.checks | exporter.sparsity(out_dir)
        verification = verification.model_copy(update={"checks": checks})
        write_verification(out_dir, verification)
        exporter.enforce(verification, config)
        details = details_of(verification, exporter.make_engine(out_dir, source, options))
        return StageResult(num_parameters=source.num_parameters, details=dict(details))

    def require_memory(_config: Export, source: ModelArtifact, context: StageContext) -> None:
        if exporter.loads_student(source.path):
            require_model_memory((source.path, "float32"), device=context.device)

    return Stage(
        name=f"export-{name}",
        run=run,
        libraries=exporter.libraries,
        require_memory=require_memory,
        content=lambda config: unless_neutral(content_of(config), edge_llm=content_of(EdgeLLM())),
    )
