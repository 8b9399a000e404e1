"""What the run says of itself."""
