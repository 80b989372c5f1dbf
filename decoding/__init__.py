"""The engine: prompts, branches, contrast. It knows no [CLS] and no benchmark."""
