"""Search methods: one module each; they meet only in the registry."""
