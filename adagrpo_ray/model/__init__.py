"""The base model: loading it and its tokenizer, its identity, GGUF files, and its files on other nodes."""
