"""Jobs on other machines: submissions to this machine, a Ray cluster or Kubernetes, and the launcher of a schedule."""
