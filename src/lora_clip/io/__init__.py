"""Files: replaced durably, locked, read by ranges."""
