"""Training consists of a chunked loss, an optimizer, the train state, a loop and checkpoints."""
