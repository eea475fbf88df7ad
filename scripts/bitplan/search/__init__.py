"""Search methods: one module each. None imports another; `settings.METHODS` lists them."""
