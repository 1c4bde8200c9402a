"""Ray clusters: joining or starting one, its nodes, addresses, placement and processes."""
