"""What `plan_layout` is made of: values in blocked layouts, and for each operator how it computes on them."""
