"""Objectives, one file each; objective.py is their contract."""
