"""Runs the calibration batches through the model, and what is collected from them."""
