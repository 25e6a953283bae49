"""The documentation as a site: `make docs` writes docs/_build/index.html, and stops at a link that leads nowhere."""

project = "trainer"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "trainer"
html_copy_source = html_show_sphinx = False
highlight_language = "none"  # a block without a language is a command line and what it prints
html_static_path = html_css_files = ["site.css"]
myst_heading_anchors = 3  # for links of the form page.md#heading
