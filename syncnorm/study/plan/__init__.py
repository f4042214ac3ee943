"""The definition of a study, and its expansion into runs."""
