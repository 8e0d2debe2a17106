"""The detector: backbone, spatio-temporal deformable encoder, tube queries, decoder and heads."""
