"""Without a learning rate, on every workload, beside tuned baselines and beside others who promise that."""
