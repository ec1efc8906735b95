"""The schemes of which each layer is rounded by itself, one module each; `registry` finds them."""
