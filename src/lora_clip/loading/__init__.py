"""Work ranges, worker processes and the batches they make."""
