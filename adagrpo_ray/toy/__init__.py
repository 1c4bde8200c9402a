"""The tiny model of the embedded task, which is trained on this machine."""
