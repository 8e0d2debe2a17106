"""Frames of one video, wherever they are stored: the readers, the clip cache, the probe of a file."""
