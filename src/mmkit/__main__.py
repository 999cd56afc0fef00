"""``python -m mmkit``: the ``mmkit`` command."""

from mmkit.cli import main

if __name__ == "__main__":
    main(prog_name="mmkit")
