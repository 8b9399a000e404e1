"""An output as tables of other tools: vectors and metadata side by side, brought up to date shard by shard."""
