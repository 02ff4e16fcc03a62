"""Ali-CCP, a public log of clicks and purchases (Ma et al., SIGIR 2018): from its published files to day partitions."""
