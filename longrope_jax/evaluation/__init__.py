"""Models are measured by perplexity, loss by position and retrieval, with their statistics."""
