"""Oblique reslice, contours, distance maps and the software 3-D view: pure functions and kernels."""
