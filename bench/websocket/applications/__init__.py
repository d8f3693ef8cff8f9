"""What the servers of the comparison run."""
