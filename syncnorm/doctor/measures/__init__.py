"""What a fault costs, measured on copies of the model."""
