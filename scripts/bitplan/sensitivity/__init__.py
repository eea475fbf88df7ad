"""How much each format of each layer costs: local errors, gradient prices and measured KL."""
