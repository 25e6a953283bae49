"""A page that is one file of HTML: markup, charts and images. It knows nothing of runs."""
