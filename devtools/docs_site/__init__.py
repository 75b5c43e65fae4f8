"""The documentation site: pages of the repository as mkdocs reads them, and pages made from code.

The Markdown of the repository is written for people who read it there. ``markdown`` turns it into
what Python-Markdown and the site understand, ``diagram`` draws its flowchart, and ``outside``
refuses a site that would ask another host. ``cli_page``, ``api_page`` and ``results_pages`` write
the pages that no file holds. ``hooks`` is what mkdocs.yml names.
"""
