"""Sphinx: the pages of this directory, and the API from the docstrings."""

import re
from importlib.metadata import version as installed_version

project = "pagemap"
author = "the pagemap developers"
version = release = installed_version("pagemap-scan")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"pagemap {release}"
html_show_copyright = html_copy_source = html_show_sphinx = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Docstrings are plain text for a terminal: `name` is code, whatever it names.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {
    "Regions": "Regions",
    "RegionArray": "Regions",
    "regions.Regions": "Regions",
}
python_maximum_signature_line_length = 88

_COLUMNS = re.compile(r"[\w.:, ]*\S {2,}\S")


def _paragraphs(lines):
    return [
        paragraph.split("\n")
        for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    ]


def lay_out(app, what, name, obj, options, lines):
    """Text in columns (a name, two spaces or more, what it is) is shown in columns.

    Functions in C begin with their signature, which the directive on the page has.
    """
    paragraphs = _paragraphs(lines)
    if paragraphs[0][0].startswith(name.rpartition(".")[2] + "("):
        del paragraphs[0]
    lines.clear()
    for paragraph in paragraphs:
        in_columns = sum(bool(_COLUMNS.match(line)) for line in paragraph) > 1
        if in_columns and not any(line.startswith("==") for line in paragraph):
            paragraph = ["::", "", *("    " + line for line in paragraph)]
        lines += [*paragraph, ""]


def name_aliases(app, what, name, obj, options, signature, result):
    """Sphinx spells aliases inside of other types as what they are to it."""
    plain = [
        part and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", part)
        for part in (signature, result)
    ]
    return tuple(plain) if plain != [signature, result] else None


def setup(app):
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("autodoc-process-docstring", lay_out)
    return {"parallel_read_safe": True}
