"""What a diagnosis looks like: a table to read, SARIF for code review."""
