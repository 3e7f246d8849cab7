"""A run on disk: its folder, its settings, its checkpoints and its rows."""
