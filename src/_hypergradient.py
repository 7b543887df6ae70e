"""Entry point of the command ``hypergradient``, outside the package so that Ctrl-C during ``import torch`` exits cleanly."""

import os
import signal
import sys


def main() -> None:
    before = signal.signal(signal.SIGINT, stop)
    from hypergradient.lab import main as run

    signal.signal(signal.SIGINT, before)
    run()


def stop(*_: object) -> None:
    """Exit at once: there is nothing to save yet, and a module being imported might catch a KeyboardInterrupt."""
    print("hypergradient: stopped", file=sys.stderr, flush=True)
    os._exit(130)
