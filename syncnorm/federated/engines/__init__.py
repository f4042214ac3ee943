"""How the clients of a round are trained: one after the other, or in one batched step."""
