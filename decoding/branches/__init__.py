"""The passes of decoding: prompts read, their caches kept, one or two branches continued token by token."""
