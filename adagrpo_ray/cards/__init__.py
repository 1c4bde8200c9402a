"""Model cards of adapters and exported models."""
