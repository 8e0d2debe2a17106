"""Running a trained detector on video: streaming, stitching, result files."""
