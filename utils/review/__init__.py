"""From suspects to a mended data set: a page to decide on, the decisions, and what they change."""
