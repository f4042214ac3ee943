"""The ranks of a torchrun, in any world: what they tell each other, what they must agree on, and what each did."""
