"""Data sets: their base class, toys, downloaded images, image folders and saved samples."""
