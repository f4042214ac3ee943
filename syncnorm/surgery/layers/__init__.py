"""Find a model's norms wherever they hide, tell what each does, and put another in its place."""
