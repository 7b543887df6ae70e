"""The command ``hypergradient``, outside of the package: Ctrl-C while torch is imported ends it in a line, too."""

import os
import signal
import sys


def main() -> None:
    before = signal.signal(signal.SIGINT, stop)
    from hypergradient.lab import main as run

    signal.signal(signal.SIGINT, before)
    run()


def stop(*_: object) -> None:
    """End at once: what is being imported has nothing to save, and may catch a KeyboardInterrupt."""
    print("hypergradient: stopped", file=sys.stderr, flush=True)
    os._exit(130)
