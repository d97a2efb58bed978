"""The calibration text of a stage, tokenised by the tokenizer of the model that it calibrates."""

from __future__ import annotations

from pathlib import Path

from compressor.data.calibration import CalibrationWindows, calibration_windows
from compressor.models.positions import warn_beyond_positions
from compressor.models.tokenizer import load_tokenizer
from compressor.recipe.recipe import Calibration
from compressor.runs.stage import StageContext


def read_calibration(calibration: Calibration, checkpoint: Path, context: StageContext) -> CalibrationWindows:
    """The sequences that set statistics; warns when the text has fewer than were asked for."""
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=context.trust_remote_code)
    warn_beyond_positions(checkpoint, calibration.seq_len, context.console)
    windows = calibration_windows(calibration, tokenizer, seed=context.seed)
    if shortage := windows.shortage(calibration):
        context.console.warn(shortage)
    return windows
