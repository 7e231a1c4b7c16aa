"""Validated configuration."""
