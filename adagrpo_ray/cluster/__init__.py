"""Being part of a Ray cluster: joining or starting one, its nodes, addresses, placement and processes."""
