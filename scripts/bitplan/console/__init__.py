"""The `bitplan` program: each of its commands writes a configuration, runs the workflow and shows the result."""
