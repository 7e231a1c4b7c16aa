"""Frames, rigid transforms, pose buffers, the time-indexed frame graph, and volumes. Pure: no clocks, no files."""
