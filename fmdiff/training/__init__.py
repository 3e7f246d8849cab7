"""The optimiser step and what happens between steps; the only home of Lightning."""
