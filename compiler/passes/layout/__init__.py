"""Parts of `plan_layout`: values in blocked layouts, and how each operator computes on them."""
