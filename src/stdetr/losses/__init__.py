"""Tube matching and the training criterion."""
