"""A model: its name, its folder, its weights; texts to vectors, prompts to text."""
