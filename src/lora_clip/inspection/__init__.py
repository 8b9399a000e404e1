"""An output looked at again beside its input: its pictures, and whether the two still agree."""
