"""The role that judges films, builds their results and sends them."""
