"""Device, precision, peak memory and processes."""
