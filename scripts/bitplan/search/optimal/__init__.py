"""The optimal plan on measured KL."""
