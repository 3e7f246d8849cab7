"""Metrics: distances between samples and real data, and results.json."""
