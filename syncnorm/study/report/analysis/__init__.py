"""Analysis of rows: points, means, differences, tables and labels. Nothing here draws."""
