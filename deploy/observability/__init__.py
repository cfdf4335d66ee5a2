"""The Grafana dashboard, as code, and a picture of it from a Prometheus."""
