"""Code that norm layers share: shapes, affine parameters, collectives, updates of running statistics."""
