"""Layer statistics of weights, and of activations on calibration text."""
