"""Functions of the user's: loading them by name, and sending them by value."""
