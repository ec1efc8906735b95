"""Reports as single HTML pages: charts and tables without network access, light and dark.

    bars = Section("Bars", BarChart([...]))
    html = render(Page("Title", "What it shows", facts=[Fact("latency", "3.4 ms")], sections=[bars]))

`page` has pages and their rendering, `charts` the charts and tables. Nothing is imported here: most commands only use
`formatting`.
"""
