"""Formulas as MathML: no script and no font to fetch, and screen readers read them."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

# what latex2mathml does not know, in words that it knows
SPELLINGS = {
    r"\begin{aligned}": r"\begin{align*}",
    r"\end{aligned}": r"\end{align*}",
    r"\coloneqq": ":=",
}


def mathml(formula: str, display: str) -> str:
    """A formula of TeX as a <math> element. display: inline or block."""
    for word, other in SPELLINGS.items():
        formula = formula.replace(word, other)
    markup = convert(formula.strip(), display=display)
    if unknown := re.search(r"<m[io]>(\\\w+)", markup):
        raise ExtensionError(f"no MathML for {unknown[1]} in {formula!r}")
    return markup.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own line, which scrolls where the page is narrow."""
    math = mathml(node.astext(), "block")
    translator.body.append(f'<div class="math-block" tabindex="0">{math}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make MathML the form of formulas in HTML."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
