"""The optimiser step and the work between steps. Only this package uses Lightning."""
