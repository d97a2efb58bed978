"""What a run writes beside its artifacts so that others can check and pass it on."""

from __future__ import annotations

from compressor.bundle.bom import BOM_FILE, bill_of_materials, write_bom
from compressor.bundle.lineage import LINEAGE_FILE, lineage_of, write_lineage
from compressor.models.source import ModelSource
from compressor.pipeline.card import card_name
from compressor.pipeline.report import CARD_FILE, public_name, text_name
from compressor.pipeline.running import Run
from compressor.pipeline.summary import PAGE_FILE
from compressor.runs.manifest import MANIFEST_FILE, PLAN_FILE, RECIPE_FILE

# The run's own files, which the sums cover beside those of its artifacts.
DOCUMENTS = (RECIPE_FILE, PLAN_FILE, CARD_FILE, PAGE_FILE, LINEAGE_FILE, BOM_FILE, MANIFEST_FILE)


def write_origins(run: Run, source: ModelSource) -> None:
    """Write the lineage and the bill of materials of all that a run has made."""
    lineage = lineage_of(source, public_name(run.recipe.model), run.teacher, run.at)
    write_lineage(run.out_dir, lineage)
    texts = {
        text_name(spec): str(fingerprint)
        for artifact in run.at.values()
        for spec, fingerprint in (artifact.inputs.get("data") or {}).items()
    }
    bill = bill_of_materials(
        lineage,
        run.at,
        name=card_name(run.out_dir.absolute().name, lineage),
        versions=run.manifest.record.versions,
        texts=texts,
    )
    write_bom(run.out_dir, bill)
