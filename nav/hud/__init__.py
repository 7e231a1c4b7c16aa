"""Presentation state and the pyqtgraph views."""
