"""The domains world: one model trained in one place on several domains, tested on those and on unseen ones."""
