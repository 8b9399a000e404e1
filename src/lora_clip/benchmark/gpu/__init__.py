"""Everything about a GPU that is an estimate until it was measured, in ten minutes: `lora-clip benchmark --gpu`."""
