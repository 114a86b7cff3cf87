"""Long documents become token streams: corpora, tokenizers, packing and synthetic tasks."""
