"""The filesystem's meaning: nodes, inode numbers, and the tree of images. No pyfuse3."""
