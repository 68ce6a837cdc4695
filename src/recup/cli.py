"""The command line."""

import click


@click.group(name="recup")
def main() -> None:
    """Record a Dask workload and ask what it did."""
