"""Solvers: a class and a YAML each, below the contract in solver.py."""
