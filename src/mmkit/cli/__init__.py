"""The ``mmkit`` command: one file per verb."""

from __future__ import annotations

import click

from mmkit.cli.doctor import doctor
from mmkit.cli.examples import examples
from mmkit.cli.maps import maps
from mmkit.cli.output import Commands
from mmkit.cli.run import run
from mmkit.cli.secret import secret
from mmkit.cli.shm import shm
from mmkit.cli.tour import tour

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mmkit")
def main() -> None:
    """See and control the memory of a Linux process."""


main.add_command(tour)
main.add_command(examples)
main.add_command(maps)
main.add_command(doctor)
main.add_command(shm)
main.add_command(run)
main.add_command(secret)
