"""The lab: the paper's experiments as commands. Installed with ``pip install hypergradient[lab]``; the library never imports it."""
