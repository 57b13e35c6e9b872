"""Ways to run packages on many machines: Ray Serve, Ray Data, and files for Docker and KServe."""
