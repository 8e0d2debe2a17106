"""Converters of video benchmarks into CocoVID, one format per file."""
