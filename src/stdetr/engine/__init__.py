"""Training loop, optimiser groups, averaged weights, checkpoints and the evaluation loop."""
