"""Layer statistics: of the weights, and of the activations on calibration text."""
