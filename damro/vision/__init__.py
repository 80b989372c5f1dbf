"""What a vision transformer attends to, and which of its patches are outliers."""
