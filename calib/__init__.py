"""Calibration of needles, styluses and probes, and tracker validation: pure functions."""
