"""The model card of an adapter or an exported model."""
