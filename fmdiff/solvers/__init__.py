"""Solvers: what carries a sample along the times of a plan; the contract is in solver.py."""
