"""The optimal allocation of formats to layers, from any sensitivity table."""
