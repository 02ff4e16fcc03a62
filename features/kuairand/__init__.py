"""KuaiRand-Pure, a real short-video log (Gao et al., CIKM 2022): from its published files to day partitions."""
