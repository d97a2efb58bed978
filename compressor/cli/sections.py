"""Help in sections: a command with many options shows them under headings."""

from __future__ import annotations

import click

OPTIONS = "Options"
# Option -> heading; what is not named here stands under "Options".
_SECTIONS = {
    "Calibration": ("calib_data", "calib_size", "calib_seq_len"),
    "Training": (
        *("tokens", "context_length", "train_batch_size", "learning_rate", "warmup_steps"),
        *("min_learning_rate_ratio", "temperature", "save_steps", "report_to"),
    ),
    "Training text": (
        *("train_data", "domains", "loss_on", "dynamic_batches", "intra_document_masking"),
        *("generate_tokens", "generate_prompts"),
    ),
    "Distillation loss and teacher": (
        *("loss", "distill_kl_weight", "top_k", "hidden_state_loss", "embedding_loss", "layer_pairs"),
        *("teacher_correction", "teacher_logits"),
    ),
    "Memory and many GPUs": ("micro_batch_size", "sharding", "activation_checkpointing", "compile"),
    "Sparsity": (
        *("sparsity", "sparsity_method", "skip", "raise_dampening", "mask_only"),
        *("slorb", "slorb_group_size", "kl_weight", "recover_tokens"),
    ),
    "Export and benchmark": (
        *("formats", "int4_min_top1", "tp_size", "pp_size", "require_engine"),
        *("isl_osl", "batches", "eval_data"),
    ),
    "Hardware of the estimates": ("gpu", "num_gpus", "mfu", "gpu_hour_price"),
    "Every command": (
        *("seed", "device", "dtype", "tokenizer", "resume", "overwrite", "trust_remote_code"),
        *("as_json", "quiet", "verbose", "debug", "help"),
    ),
}
_HEADING_OF = {name: heading for heading, names in _SECTIONS.items() for name in names}


class SectionedCommand(click.Command):
    """A command whose help groups its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the headings' order."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (OPTIONS, *_SECTIONS)}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None:
                rows[_HEADING_OF.get(str(option.name), OPTIONS)].append(record)
        for heading, records in rows.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
