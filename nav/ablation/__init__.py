"""Applicators, zones and margins: pure functions and kernels."""
