"""``python -m hypergradient``: the command of the lab."""

from .lab import main

if __name__ == "__main__":
    main()
