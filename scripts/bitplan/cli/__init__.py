"""What every command shares: flags, logging, errors and exit codes."""
