"""Code that the tests share: real servers to start and kill, a scripted provider, and `wait_until`."""
