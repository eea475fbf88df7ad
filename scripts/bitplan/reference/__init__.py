"""The reference model's tokens and final hidden states on a text, and the text itself."""
