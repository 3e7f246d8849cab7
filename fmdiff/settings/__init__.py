"""Turns a command line into a checked config. Only this package uses Hydra's internals."""
