"""Episodes of several turns: environments and tools in processes of their own, and the adapters for those of others."""
