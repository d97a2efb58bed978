"""`compress-export schema`: the JSON schema of recipes."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON schema of recipes on stdout; editors check and complete recipes by it.

    In Visual Studio Code with the YAML extension, and in editors with yaml-language-server, a recipe names it
    in its first line:

    \b
      # yaml-language-server: $schema=recipe.schema.json
    """
    from compressor.recipe.schema import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))
