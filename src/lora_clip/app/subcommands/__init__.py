"""The sub-commands of `lora-clip`, a module each: the arguments it takes, and what it does with them."""
