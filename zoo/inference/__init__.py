"""Decoding: `generate` in one compiled program, and the sampling it is made of."""
