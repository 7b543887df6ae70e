"""``python -m hypergradient`` runs the command-line lab."""

from .lab import main

if __name__ == "__main__":
    main()
