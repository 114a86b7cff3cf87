"""Perplexity, loss by position, retrieval tasks, scoring and the statistics of their claims."""
