"""The embedded task's tiny model, made on this machine."""
