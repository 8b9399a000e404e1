"""Pages for people: templates, the style that they share, charts, and the page of a run."""
