"""The benchmark of ``hypergradient compare``: the tuning-free optimizers against tuned baselines and tuning-free peers."""
