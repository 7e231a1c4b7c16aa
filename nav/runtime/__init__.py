"""Clocks, slots, stream health, the compute thread, recorder and replay."""
