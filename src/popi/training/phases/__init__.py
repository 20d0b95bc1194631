"""The phases of training, one readable file each."""
