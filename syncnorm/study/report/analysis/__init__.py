"""What rows say: points, means, differences, tables and the words for them. Nothing here draws."""
