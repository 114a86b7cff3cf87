"""Long documents and token streams: corpora, tokenizers, packing and synthetic tasks."""
