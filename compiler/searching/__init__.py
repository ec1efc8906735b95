"""Architecture search: the most accurate net that meets a budget on a target."""
