"""Training: loss in chunks, optimizer, state, the loop, checkpoints."""
