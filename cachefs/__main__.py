"""``python -m cachefs``: the command line, where no script is installed."""

from cachefs.cli import main

if __name__ == "__main__":
    main(prog_name="cachefs")
