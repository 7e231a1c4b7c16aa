"""Access paths and applicator placement."""
