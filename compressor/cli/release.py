"""`compress-export clean` and `publish`: what becomes of a finished run."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.session import Show, emit, showing, work
from compressor.core.errors import UsageError
from compressor.core.sizes import shown_size
from compressor.recipe.forms import parse_names


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--keep",
    metavar="PART,...",
    default="student,exports",
    show_default=True,
    help="Parts whose weights are kept: student, and any of exports and stages.",
)
@showing
def clean(directory: Path, keep: str, show: Show) -> None:
    """Delete the weights that the stages of the finished run in DIRECTORY left.

    Records, plans, results and the bundle's sums stay, and `verify` says which parts were cleaned. The run
    cannot be continued with other settings afterwards.
    """
    from compressor import api

    parts = api.kept_parts(parse_names(keep))
    with work(show, "cpu") as console:
        freed = api.clean(directory, keep=parts, console=console)
    emit(
        {"schema": "compress-export/clean/1", "path": str(directory), "freed_bytes": freed},
        show,
        f"{directory}: {shown_size(freed)} freed",
    )


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--push-to-hub", metavar="OWNER/NAME", help="Repository of the Hugging Face Hub to upload to.")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option(
    "--sign",
    is_flag=True,
    help="Sign SHA256SUMS by sigstore, which asks who you are; needs pip install 'compress-export[signing]'.",
)
@click.option(
    "--private-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Sign SHA256SUMS with this private key (PEM, elliptic curve) instead of by sigstore.",
)
@showing
def publish(
    directory: Path,
    push_to_hub: str | None,
    private: bool,  # noqa: FBT001 - as click passes it
    sign: bool,  # noqa: FBT001
    private_key: Path | None,
    show: Show,
) -> None:
    """Sign the sums of the finished run in DIRECTORY, upload it to the Hugging Face Hub, or both.

    The student lies at the top of the repository, exports and documents below; stages are not uploaded.
    Nothing is passed on if a gate of the run's recipe fails, or a file is not as it was written. The token is
    read from HF_TOKEN, or from where `hf auth login` keeps it.
    """
    from compressor import api

    if not (push_to_hub or sign or private_key):
        raise UsageError(
            "there is nothing to do", hint="give --push-to-hub OWNER/NAME, --sign or --private-key FILE"
        )
    if private and not push_to_hub:
        raise UsageError("--private is about an upload, and there is none", hint="leave it out")
    with work(show, "cpu") as console:
        made = api.publish(
            directory,
            hub=push_to_hub,
            private=private,
            sign=sign,
            private_key=private_key,
            console=console,
        )
    emit(
        {"schema": "compress-export/publish/1", **made},
        show,
        "\n".join(f"{name}: {where}" for name, where in made.items()),
    )
