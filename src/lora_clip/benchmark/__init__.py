"""How fast the job is beside what people run today, and beside what the machine allows: `lora-clip benchmark`."""
