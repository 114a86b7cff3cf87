"""Search of per-pair factors for a trained model: evolution (LongRoPE, LongRoPE2) and gradient.

Proposals are pure numpy on the host; fitness is one compiled program for a whole population.
"""
