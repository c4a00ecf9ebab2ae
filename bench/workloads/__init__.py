"""The workloads: W1 to W8, W1 through each face, and growth. Each offers a load and returns figures."""
