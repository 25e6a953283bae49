"""What knows no domain: errors, files, signals, ranks, the screen, figures of a classifier."""
