"""Sources and sinks, one package per kind; found through entry points, never imported by ``nav``."""
