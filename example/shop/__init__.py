"""The shop: orders, products and policies, and the agent that looks after them."""
