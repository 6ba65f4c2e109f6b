"""What any room may use: configuration, errors, files, images, random numbers, processes, progress."""
