"""Search methods: one folder each. No method imports another."""
