"""What limited a run, from what it measured."""
