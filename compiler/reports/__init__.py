"""Reports as one HTML page each: charts and tables without a network, light and dark.

    bars = Section("Bars", BarChart([...]))
    html = render(Page("Title", "What it shows", facts=[Fact("latency", "3.4 ms")], sections=[bars]))

`page` has pages and their rendering, `charts` the charts and tables. Nothing is imported here: most commands use
`formatting` alone.
"""
