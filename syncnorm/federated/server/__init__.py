"""The server's side of a federation, and its measurements."""
