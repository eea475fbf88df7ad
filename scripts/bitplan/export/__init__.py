"""Plans as files that runtimes load."""
