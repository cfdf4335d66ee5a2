"""Several servers at once: on hosts of their own, behind proxies, under load."""
