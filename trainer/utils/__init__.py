"""What every part leans on and nothing of deep learning: errors, run directories, files, signals, screen, pictures."""
