"""Texts as tasks: files of reviews or of prompts with answers, their token ids, and the streams made of them."""
