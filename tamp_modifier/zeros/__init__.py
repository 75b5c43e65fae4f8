"""Pruned weights stay zero, through recipes and through training."""
