"""Search methods: one command each, listed in `settings.METHODS`. No method imports another; `choices` and `exact` serve all."""
