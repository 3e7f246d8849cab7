"""Live pages: one HTML file that plays a field, a system or a checkpoint in a browser."""
