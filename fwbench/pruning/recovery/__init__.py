"""What makes up for pruning: kept weights trained block by block, the mask kept."""
