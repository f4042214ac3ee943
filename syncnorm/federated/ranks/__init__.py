"""Clients over the ranks of a torchrun: who trains whom, and the network that the rounds speak to."""
