"""Functions of the user: loading them by name, and sending them by value."""
