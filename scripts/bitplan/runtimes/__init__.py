"""Plans as files that runtimes load, scored and timed by the runtimes themselves."""
