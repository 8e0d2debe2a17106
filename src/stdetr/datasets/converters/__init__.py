"""Converters of video benchmarks into CocoVID, one format a file."""
