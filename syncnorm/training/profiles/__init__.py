"""What a training's layers get and give, layer by layer: gradients, values, effective samples."""
