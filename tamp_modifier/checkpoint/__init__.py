"""Saved folders: what is in them, and whether it is whole."""
