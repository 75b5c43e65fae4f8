"""Run the calibration batches through the model, and collect what a method needs."""
