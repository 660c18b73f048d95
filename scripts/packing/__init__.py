"""What a wheel holds: kernels without the lines of their sources, compressed one by one."""
