"""Long documents become token streams: corpora, tokenizers, and packing."""
