"""How figures are drawn. Functions import matplotlib, so that a study file that names plots is read at once."""
