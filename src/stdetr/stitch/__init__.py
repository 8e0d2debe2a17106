"""From the tubes of windows to tracks of a whole video."""
