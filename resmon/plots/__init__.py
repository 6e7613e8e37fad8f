"""What the post-mortem and the agent's page draw: figures as data for plotly.js, made without plotly's Python package.

What that package does beyond making data, checking it, tests do once: they hold every figure against its schema. Colours of ink,
rules and series stand in a figure as CSS variables, `var(--ink)`, which the page that shows it resolves for light, dark and print:
colours.css has them, draw.js resolves them. Every text that comes from a file is escaped, because plotly reads tags in texts.
"""
