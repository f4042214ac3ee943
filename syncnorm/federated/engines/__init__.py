"""Engines that train the clients of a round: one after another, or in one batched step."""
