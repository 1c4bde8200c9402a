"""The base model: the tiny one built here, and loading any other with its adapter."""
