"""Registrations, each with its own quality and error estimate: pure functions."""
