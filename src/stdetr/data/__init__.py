"""Data: video sources, the CocoVID index, clip sampling, transforms, loaders and the toy benchmark."""
