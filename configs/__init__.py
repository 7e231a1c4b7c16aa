"""Configurations that ship with the program."""
