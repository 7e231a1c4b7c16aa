"""Ablation navigation: the navigator (geometry, imaging, registration, ablation, guidance, runtime, HUD)."""
