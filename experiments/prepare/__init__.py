"""Stages that make a training corpus as LLaMA did (2302.13971, section 2.1).

A stage is a function from documents to documents that streams: it holds what it must remember (the
hashes of lines it has seen, say) and never the text.
"""
