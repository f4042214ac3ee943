"""What norm layers share: shapes, affine parameters, collectives, the update of running statistics."""
