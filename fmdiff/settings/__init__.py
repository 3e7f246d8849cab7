"""From the words of a command line to a checked config; the only home of Hydra's internals."""
