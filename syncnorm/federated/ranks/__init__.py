"""Clients over the ranks of a torchrun: who trains whom, what ranks tell each other, and what they must agree on."""
