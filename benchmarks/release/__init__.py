"""How the released checkpoint was made and measured; see `docs/model-card.md`."""
