"""The command `pronk`, and `python -m pronk`."""

from __future__ import annotations

from pronk.run.guard import handle_signals


def main() -> None:
    """Run the command that the arguments name."""
    handle_signals()  # before anything heavy is imported
    from pronk.cli import main as run

    run()


if __name__ == "__main__":
    main()
