"""Data sets: the toy benchmark, converters into CocoVID, validation, statistics and pictures of annotations."""
