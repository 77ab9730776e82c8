"""Names that would be more than names wherever text is shown."""

HOSTILE = [
    "cat\n```\n# INJECTED\n<img src=x>\n<!-- hf-kd: end -->\n```",
    "cat | dog | <b>bold</b>",
    "```` four ````` five",
    "# heading",
    "\n\n# heading after lines\r\n\r\n- list",
    "<!-- hf-kd: begin --> <!-- hf-kd: end -->",
    "<details><script>alert(1)</script>",
    "$x^2$ and $\\frac{1}{0}$ and $unbalanced",
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link\x1b]8;;\x07 \x9b2J",
    "a\u202eb\u2066c\u200bd\u2028e\ufefff",
    "[red]markup[/red] [/] [link=http://evil]x[/link]",
    "![image](http://evil/x.png) [link](javascript:alert(1)) http://evil www.evil.com",
    "key: value\n- item\n--- \n&anchor *alias !tag {a: b} % @",
    "'quotes' \"double\" $(touch x) `touch y` ; rm -rf \\",
    "1. first",
    "=====",
    "---",
    "x" * 5000,
    "\\",
    "**bold** _it_ ~~out~~",
]
