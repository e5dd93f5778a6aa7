"""Optimizer, train state, and the one jitted step; the loop around it."""
