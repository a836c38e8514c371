"""Split files and folder layouts -> lists of images with labels."""
