"""The server's side of a federation, and what it measures."""
