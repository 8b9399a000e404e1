"""Pages for people: templates, charts, and what goes into them."""
