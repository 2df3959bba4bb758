"""The role that assesses images, builds their results and sends them."""
