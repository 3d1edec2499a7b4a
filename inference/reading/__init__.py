"""How a batch of prompts is read and written on: padded, by any language model, or fused, by those that are known."""
