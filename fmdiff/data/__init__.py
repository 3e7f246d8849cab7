"""Data sets: their contract, toys, downloaded images, own folders and samples in files."""
