"""Per-pair factors for a trained model are found by evolution (LongRoPE, LongRoPE2) or gradient.

Proposals are pure numpy on the host; fitness is one compiled program for a whole population.
"""
