"""A trained network measured: errors, confusion, calibration."""
